"""The robustness analysis: subject in, result out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from analyze.distributed import ALONE, World
from analyze.results import Progress, silent
from analyze.robustness import attacks, corruptions, frequency_noise, heat_map
from analyze.robustness.predictions import Predictor
from analyze.robustness.spec import Clean, Config, Result
from analyze.scratch import Scratch
from analyze.subject import Subject
from data_cache import InputError


def compute(
    subject: Subject,
    config: Config | None = None,
    *,
    previous: Result | None = None,
    save: Callable[[Result], None] = lambda result: None,
    progress: Progress = silent,
    world: World = ALONE,
    scratch: Scratch | None = None,
) -> Result:
    """How a network bears noise of each frequency band, single waves, adversarial attacks and corruptions.

    Args:
        subject: Model and data. Labels are class numbers; the loss plays no part.
        config: What to compute; the defaults of `Config` if None.
        previous: A result of the same subject and config, perhaps incomplete, to go on from.
        save: Called with the result so far after each pair of strength and band, row of the heat map, attack, and
            corruption.
        progress: Called after each of them.
        world: The ranks that share the work; each calls `compute` with the same arguments. Rank 0's result counts.
        scratch: Not used.

    Raises:
        InputError: The data are no images with class labels, the model gives no (B, classes) or fails on the images,
            or memory runs out.
    """
    try:
        return _Analysis(subject, config or Config(), save, progress, world).run(previous or Result())
    except MemoryError as error:
        raise InputError("memory ran out; lower --batch-size or --limit.") from error


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all that the config asks for."""
    holds = {
        "frequency-noise": lambda: frequency_noise.is_complete(result.frequency_noise, config),
        "heat-map": lambda: heat_map.is_complete(result.heat_map),
        "adversarial": lambda: attacks.is_complete(result.adversarial, config),
        "corruptions": lambda: corruptions.is_complete(result.corruptions, config),
    }
    return result.clean is not None and all(holds[part]() for part in config.parts)


@dataclass
class _Analysis:
    """One call of `compute`: the parts in turn, and the predictions that they share."""

    subject: Subject
    config: Config
    save: Callable[[Result], None]
    progress: Progress
    world: World
    predictors: dict[int, Predictor] = field(default_factory=dict)

    def run(self, previous: Result) -> Result:
        config, world, progress = self.config, self.world, self.progress
        self.result, self.about = previous, self.subject.describe()
        self._refuse_early()
        if (clean := self.result.clean) is None:
            progress("clean images", 0, 1, "")
            clean = clean_of(self.predictor())
            progress("clean images", 1, 1, f"accuracy {clean.accuracy:.3f}")
        self._keep(clean=clean)
        if "frequency-noise" in config.parts:
            for noise in frequency_noise.grow(
                self.predictor(), config, self.result.frequency_noise, clean=clean, world=world, progress=progress
            ):
                self._keep(frequency_noise=noise)
        if "heat-map" in config.parts:
            for found in heat_map.grow(
                self.predictor(config.heat_map_images), config, self.result.heat_map, world=world, progress=progress
            ):
                self._keep(heat_map=found)
        if "adversarial" in config.parts:
            for attacked in attacks.grow(
                self.predictor(config.attack_images), config, self.result.adversarial, world=world, progress=progress
            ):
                self._keep(adversarial=attacked)
        if "corruptions" in config.parts:
            for corrupted in corruptions.grow(
                self.predictor(config.corruption_images),
                config,
                self.result.corruptions,
                world=world,
                progress=progress,
            ):
                self._keep(corruptions=corrupted)
        return self.result.of(config, self.about)

    def _refuse_early(self) -> None:
        """InputError for what later parts can't be made of, before the first."""
        if "adversarial" in self.config.parts:
            attacks.Attack(self.predictor(self.config.attack_images), self.config)
        if "corruptions" in self.config.parts:
            corruptions.source_of(self.predictor(self.config.corruption_images), self.config)

    def predictor(self, images: int = 0) -> Predictor:
        """Of so many images, 0 for all of them; parts that use the same ones share it."""
        images = min(images or self.subject.data.images, self.subject.data.images)
        if images not in self.predictors:
            self.predictors[images] = Predictor(self.subject, self.config.passes, images)
        return self.predictors[images]

    def _keep(self, **parts: object) -> None:
        self.result = replace(self.result, **parts)  # type: ignore[arg-type]
        self.save(self.result.of(self.config, self.about))


def clean_of(predictor: Predictor) -> Clean:
    """How the network does on its images as they are."""
    outcome = predictor.clean_outcome()
    scores = outcome.scores()
    kept = ("accuracy", "accuracy_stderr", "nll", "nll_stderr", "ece", "group_correct", "group_nll")
    return Clean(
        images=predictor.images,
        classes=predictor.classes,
        passes=predictor.passes,
        group_images=predictor.group_images(),
        **{name: scores[name] for name in kept},  # type: ignore[arg-type]
    )
