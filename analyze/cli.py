"""From an analysis's `Config` to its command: options, progress, run file, figure, table."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from analyze.distributed import ALONE, World, first_speaks, joined, local_device
from analyze.results import AnalysisResult, Row, checkpoint_name, identity, plain
from analyze.run import RunFile, library_versions
from analyze.scratch import Scratch
from data_cache import InputError, exit_on_input_error, paths

SAVE_SECONDS = 3.0
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Shared:
    """Options that all analyses share."""

    ckpt: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Checkpoint: a file, or the name of one that ships (`python -m models list`)."""
    ensemble: Flag = False
    """Take several --ckpt as the members of one deep ensemble."""
    model: str | None = None
    """For files that do not say: a zoo name, torchvision:NAME, timm:NAME or package.module:factory."""
    model_args: tuple[str, ...] = ()
    """Keyword arguments of the network as key=value, for example num_classes=100."""
    data: str | None = None
    """NAME[:SPLIT], for example fashion_mnist:test or folder:PATH:val; default: what the checkpoint records."""
    limit: int | None = None
    """Use this many images, evenly spaced over the split; 0 for all of them."""
    batch_size: int = 128
    """Images in a batch; changes rounding and memory only, and the masks of dropout, which belong to a batch."""
    weight_decay: float | None = None
    """Adds (weight_decay / 2) ||w||^2 to the loss; default: what the checkpoint records."""
    mode: Literal["eval", "train"] = "eval"
    """Mode of the network; train freezes BatchNorm's running statistics."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; under torchrun, auto and cuda give each process a GPU of its own."""
    dtype: Literal["float32", "float64"] = "float32"
    """Arithmetic."""
    seed: int = 0
    """Decides every random draw."""
    out: Path | None = None
    """Run file; default: CHECKPOINT.h5 in the results folder. Several analyses share one."""
    plot: bool = True
    """Draw the figures beside the run file."""
    figure_format: Literal["png", "pdf", "svg"] = "png"
    """Format of the figures."""
    compare: tuple[Path, ...] = ()
    """Run files of other checkpoints, to draw beside this one."""
    resume: Flag = False
    """Go on from what the run file holds; this is what happens anyway."""
    restart: Flag = False
    """Compute anew, in place of all that the run file holds of this analysis."""
    quiet: Flag = False
    """No progress bar."""
    json: Flag = False
    """Print the numbers as JSON instead of the table."""


def parse(name: str, arguments: Sequence[str] | None = None) -> tuple[Shared, Any]:
    """Shared options and the analysis's own from a command line; exits with help or a usage error."""
    spec = _spec(name)
    defaults = {key: value for key, value in spec.SUBJECT_DEFAULTS.items() if key != "split"}
    flat = tyro.conf.OmitArgPrefixes
    command = dataclasses.make_dataclass(
        "Command", [("shared", flat[Shared]), ("config", flat[spec.Config])], frozen=True
    )
    with exit_on_input_error():
        parsed = tyro.cli(
            command,
            args=arguments,
            prog=f"python -m analyze.{name}",
            description=f"{spec.TITLE}. By default on the {split_of(name) or 'training'} split.",
            default=command(shared=Shared(ckpt=tyro.MISSING, **defaults), config=spec.Config()),
        )
        check(parsed.shared)
    return parsed.shared, parsed.config


def check(shared: Shared) -> None:
    """Refuse shared options that are incomplete or contradict each other."""
    if not shared.ckpt:
        raise InputError("--ckpt is missing: give a checkpoint file, or the name of one that ships.")
    if len(shared.ckpt) > 1 and not shared.ensemble:
        raise InputError(
            "several --ckpt are one deep ensemble with --ensemble; to compare them, analyze each, and give their "
            "run files to python -m analyze.compare."
        )
    if shared.resume and shared.restart:
        raise InputError("--resume and --restart contradict each other.")
    if shared.compare and not shared.plot:
        raise InputError("--compare draws figures, and --no-plot draws none.")


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """The command of an analysis: parse, compute, save, draw, print."""
    with first_speaks():
        shared, config = parse(name, arguments)
    with exit_on_input_error(), joined(shared.device) as world:
        run(name, shared, config, world)


def run(name: str, shared: Shared, config: Any, world: World = ALONE) -> AnalysisResult:
    """Compute an analysis into its run file, draw its figure and print its table; the result.

    In a process other than the first, only help to compute it; what that one refuses, all refuse.
    """
    check(shared)
    if world.rank == 0 and not shared.quiet:
        print("loading ...", file=sys.stderr, flush=True)
    subject = load_subject(shared, split=split_of(name))
    if world.rank > 0:
        return assist(name, subject, config, world)
    others, out = _others(name, shared, config), run_file(shared, subject.describe())
    outcome = carry_out(name, shared, config, subject, out, world)
    figures = draw(outcome.result, config, others, out, shared)
    report(outcome, out, figures, as_json=shared.json)
    return outcome.result


def run_file(shared: Shared, about: Mapping[str, Any]) -> Path:
    """Where the results of a subject go."""
    return shared.out or paths.results() / f"{checkpoint_name(about)}.h5"


@dataclass(frozen=True)
class Outcome:
    """What came of an analysis."""

    result: AnalysisResult
    seconds: float
    """Spent on it, over all runs."""
    fresh: bool
    """Whether anything was computed now."""


def carry_out(
    name: str, shared: Shared, config: Any, subject: Any, out: Path, world: World = ALONE, title: str = ""
) -> Outcome:
    """Bring an analysis in the run file `out` to what the config asks for, in the first process.

    The others call `assist`, and raise the same `InputError` if this one refuses to begin.
    """
    spec, compute = _spec(name), importlib.import_module(f"analyze.{name}.compute")
    options, about = dataclasses.asdict(config), subject.describe()
    with ExitStack() as stack:
        with _refusal_told(world):
            file = stack.enter_context(RunFile(out, identity(about)))
            previous, spent, done = None, 0.0, False
            stored = None if shared.restart else file.load(name, spec.Result)
            free = ["checkpoint", "smoothing", *free_options(config, stored)]
            scratch = _scratch(out, name, config, about)
            if stored is not None and file.check_resume(name, options, about, ignore=free):
                previous = stored
                attributes = file.attributes(name) or {}
                spent = float(attributes.get("seconds", 0.0))
                done = compute.is_complete(previous, config)
                about = _after(attributes.get("subject", {}), about, done=done)
            if shared.restart:
                scratch.clear()
        began = time.perf_counter()
        saver = _Saver(file, name, config, about, compute.is_complete, began - spent)
        world.broadcast((done, previous, ""))
        if done and previous is not None:
            return Outcome(previous.of(options, about), spent, fresh=False)
        with Bars(quiet=shared.quiet, title=title) as bars:
            try:
                result = compute.compute(
                    subject,
                    config,
                    previous=previous,
                    save=saver.offer,
                    progress=bars.report,
                    world=world,
                    scratch=scratch,
                )
                saver.offer(result)
            except KeyboardInterrupt:
                bars.close()
                kept = (
                    f"what is done is in {out}: the same command goes on" + " without --restart" * shared.restart
                    if out.is_file()
                    else "nothing was written"
                )
                print(f"interrupted; {kept}.", file=sys.stderr)
                raise SystemExit(130) from None
            finally:
                saver.flush()
        seconds = float((file.attributes(name) or {})["seconds"])
    return Outcome(result.of(result.config or {}, about), seconds, fresh=True)


def _after(stored: Mapping[str, Any], about: Mapping[str, Any], *, done: bool) -> dict[str, Any]:
    """The subject of what goes on from a stored result: that came by the paths of the smoothing operator it says."""
    if "smoothing" not in about:
        return dict(about)
    paths = [*str(stored.get("smoothing", "unknown")).split(" and "), *([] if done else [about["smoothing"]])]
    return {**about, "smoothing": " and ".join(dict.fromkeys(paths))}


@contextmanager
def _refusal_told(world: World) -> Iterator[None]:
    """Let the other processes, who wait for what `assist` begins with, refuse for the same reason."""
    try:
        yield
    except InputError as error:
        world.broadcast((False, None, str(error)))
        raise


def assist(name: str, subject: Any, config: Any, world: World) -> AnalysisResult:
    """Share the work of the first process, from where its run file stands."""
    compute = importlib.import_module(f"analyze.{name}.compute").compute
    nothing: tuple[bool, Any, str] = False, None, ""
    done, previous, refusal = world.broadcast(nothing)
    if refusal:
        raise InputError(refusal)
    return previous if done else compute(subject, config, previous=previous, world=world)


def draw(
    result: AnalysisResult, config: Any, others: Sequence[AnalysisResult], out: Path, shared: Shared
) -> list[Path]:
    """The figures of an analysis, beside the run file, and the animation that its options ask for."""
    figure = out.with_name(f"{out.stem}_{result.analysis}.{shared.figure_format}")
    with Bars(quiet=shared.quiet) as bars:
        try:
            figures = result.plot(figure, others) if shared.plot else []
            return figures + result.animate(config, others, bars.report)
        except KeyboardInterrupt:
            bars.close()
            print(f"interrupted; all numbers are in {out}: the same command draws them.", file=sys.stderr)
            raise SystemExit(130) from None


def _spec(name: str) -> Any:
    return importlib.import_module(f"analyze.{name}.spec")


def split_of(name: str) -> str | None:
    """Which split of the recorded data set an analysis is about; None: what was trained on."""
    return _spec(name).SUBJECT_DEFAULTS.get("split")


def _scratch(out: Path, name: str, config: Any, about: Mapping[str, Any]) -> Scratch:
    """Room beside the run file for the state of a long search, of these options and this subject."""
    fixed = [field.name for field in dataclasses.fields(config) if not field.metadata.get("free")]
    options = {field: getattr(config, field) for field in fixed}
    return Scratch(out.with_name(f".{out.name}.{name}-state.npz"), [options, about, library_versions()])


def _others(name: str, shared: Shared, config: Any) -> list[AnalysisResult]:
    """The results that are drawn beside this one; refused before long work if they can't be."""
    result, others = _spec(name).Result, []
    for path in shared.compare:
        others.append(result.read(path))
        if reason := others[-1].incomparable(config):
            raise InputError(f"--compare {path}: {reason}.")
    result.check_animation(config, others)
    return others


def free_options(config: Any, stored: AnalysisResult | None) -> list[str]:
    """Options (of a Config or its class) that may differ from the stored result's: they change no number in it."""
    return [
        field.name
        for field in dataclasses.fields(config)
        if field.metadata.get("free")
        or ("parts" in field.metadata and all(getattr(stored, part, None) is None for part in field.metadata["parts"]))
    ]


def load_subject(shared: Shared, split: str | None = None) -> Any:
    """The subject that the shared options describe, on this split of the recorded data unless they name other."""
    import torch

    from analyze.subject import Subject
    from models.arguments import parse_key_values

    return Subject.load(
        shared.ckpt,
        model=shared.model,
        model_args=parse_key_values(shared.model_args),
        data=shared.data,
        split=split,
        limit=shared.limit or None,
        batch_size=shared.batch_size,
        weight_decay=shared.weight_decay,
        mode=shared.mode,
        device=local_device(shared.device),
        dtype=getattr(torch, shared.dtype),
        seed=shared.seed,
    )


class _Saver:
    """Writes partial results, at most every few seconds."""

    def __init__(self, file: RunFile, name: str, config: Any, about: Mapping[str, Any], is_complete: Any, began: float):
        self.file, self.name, self.config, self.about = file, name, config, about
        self.is_complete, self.began = is_complete, began
        self.pending: AnalysisResult | None = None
        self.last = -SAVE_SECONDS

    def offer(self, result: AnalysisResult) -> None:
        """Write this result now, or later if one was just written."""
        self.pending = result
        if time.perf_counter() - self.last >= SAVE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if (result := self.pending) is None:
            return
        self.file.save(
            self.name,
            result,
            config=result.config or {},
            complete=self.is_complete(result, self.config),
            seconds=time.perf_counter() - self.began,
            subject=self.about,
        )
        self.pending, self.last = None, time.perf_counter()


class Bars:
    """A progress bar for each part of an analysis, on stderr, after a title.

    Python drops a Ctrl-C that comes while it runs a destructor or a weak reference's callback: the next report raises
    it again.
    """

    def __init__(self, quiet: bool, title: str = ""):
        self.quiet, self.title = quiet, title
        self.part: str | None = None
        self.bar: Any = None
        self._interrupted, self._handles = False, False

    def __enter__(self) -> Bars:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with suppress(ValueError):  # only the main thread has signals
                signal.signal(signal.SIGINT, self._interrupt)
                self._handles = True
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        if self._handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def close(self) -> None:
        """Finish the current bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def report(self, part: str, done: int, total: int | None, note: str) -> None:
        """Show how far a part is."""
        from tqdm import tqdm

        if self._interrupted:
            raise KeyboardInterrupt
        if part != self.part:
            self.close()
            self.part = part
            name = self.title if part in self.title else f"{self.title}: {part}" if self.title else part
            # who reads our output as it comes asks for more of it by tqdm's own variable, which an argument would hide
            seconds = {} if "TQDM_MININTERVAL" in os.environ else {"mininterval": 0.2 if sys.stderr.isatty() else 10}
            self.bar = tqdm(
                total=total, initial=done, desc=name, unit="", disable=self.quiet, dynamic_ncols=True, file=sys.stderr,
                **seconds,
            )  # fmt: skip
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)


def report(outcome: Outcome, out: Path, figures: Sequence[Path], *, as_json: bool) -> None:
    """Print the table, or JSON, and the paths written."""
    result, subject = outcome.result, outcome.result.subject or {}
    if as_json:
        found = content(outcome) | {"run_file": str(out), "figures": [str(figure) for figure in figures]}
        print(json.dumps(plain(found), indent=2, default=str))
        return
    print(describe(subject))
    if status := smoothing_status(subject, outcome.fresh):
        print(status)
    print(table(result.rows()))
    for further in result.tables():
        print(f"\n{further}")
    stored = "" if outcome.fresh else " (already in the run file; --restart computes it anew)"
    print(f"\ntime      {outcome.seconds:.1f} s{stored}")
    print(f"run file  {out}")
    for figure in figures:
        print(f"figure    {figure}")


def content(outcome: Outcome) -> dict[str, Any]:
    """What the JSON says of an analysis."""
    result = outcome.result
    return {
        result.analysis: plain(result),
        "config": result.config,
        "subject": result.subject or {},
        "seconds": outcome.seconds,
    }


def describe(subject: Mapping[str, Any]) -> str:
    """What the numbers are of, in one line."""
    images = f"{subject['images']:,} images of {subject['data']}"
    return f"{checkpoint_name(subject)} ({subject['model']}): {images}, {setting(subject)}"


def setting(subject: Mapping[str, Any]) -> str:
    """What all analyses of a command have in common."""
    return (
        f"{subject['mode']} mode, weight decay {subject['weight_decay']:g}, "
        f"{subject['dtype']} on {subject['device']}, seed {subject['seed']}"
    )


def smoothing_status(subject: Mapping[str, Any], fresh: bool = True) -> str:
    """Which path computed the smoothing operator of a network that has one; empty for others."""
    if "smoothing" not in subject:
        return ""
    if not fresh or " and " in subject["smoothing"]:  # not, or not only, by this process
        return f"smoothing operator: {subject['smoothing']} ({subject['device']})"
    from ext import status

    return status()


def table(rows: Sequence[Row]) -> str:
    """Aligned columns: quantity, value ± error, remark."""
    cells = []
    for quantity, value, error, remark in rows:
        number = f"{value:d}" if isinstance(value, int) else f"{value:.5g}"
        cells.append((quantity, number, "" if error is None or math.isnan(error) else f"± {error:.2g}", remark))
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return "\n".join(
        f"  {quantity:<{widths[0]}}  {value:>{widths[1]}} {error:<{widths[2]}}  {remark}".rstrip()
        for quantity, value, error, remark in cells
    )
