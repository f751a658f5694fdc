"""Forms: every option of every analysis, there and back; and nothing entered becomes anything else."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any, Literal

import pytest

from analyze import analyses, cli, suite
from apps import forms
from data_cache import InputError

CHECKPOINT = "resnet_dnn_18"


def config_of(name):
    return importlib.import_module(f"analyze.{name}.spec").Config


def other_values(option):
    """Values that differ from the default."""
    default = option.default
    if option.kind == "flag":
        return [not default]
    if option.kind == "whole":
        return [(default or 0) + 1]
    if option.kind == "number":
        return [default * 1.5 if default else 0.5]
    if option.kind == "choice":
        return [choice for choice in option.choices if choice != default]
    if option.kind == "choices":
        return [option.choices[:1], option.choices[::-1]]
    if option.kind == "file":
        return [Path("/runs/a.h5")] if option.reads == "run" else [*option.choices[1:], CHECKPOINT]
    if option.kind == "files":
        return [(CHECKPOINT, "another one")]
    if option.kind == "output":
        return [Path(f"/runs/a{option.writes}")]
    if option.items == (str,):
        return [("layer1.*", "[!l]*"), ("gaussian_noise", "fog")]
    return [default[:-1], default * 2, tuple(option.items[0](number) for number in (1, 2))]


def accepted(config, values):
    try:
        return config(**values)
    except InputError:
        return None


def changed(name):
    """Sets of options that together change every field of the config that a form offers."""
    config, left = config_of(name), forms.options(config_of(name))
    while left:
        values, skipped = {}, []
        for option in left:
            for value in other_values(option):
                if value != option.default and accepted(config, {**values, option.name: value}):
                    values[option.name] = value
                    break
            else:
                skipped.append(option)
        assert values, f"no other value of {[option.name for option in skipped]} is accepted"
        yield values
        left = skipped


@pytest.mark.parametrize("name", analyses())
def test_defaults_give_no_option(name):
    config = config_of(name)
    found = forms.options(config)
    defaults = {option.name: option.default for option in found}
    assert forms.arguments(found, defaults) == []
    assert config(**defaults) == config()
    shared = forms.shared_options(name)
    assert forms.arguments(shared, {option.name: option.default for option in shared}) == []
    given, parsed = cli.parse(name, ["--ckpt", CHECKPOINT])
    assert parsed == config()
    assert {option.name: option.default for option in shared} == {
        option.name: getattr(given, option.name) for option in shared
    }


@pytest.mark.parametrize("name", analyses())
def test_another_value_of_every_option_parses_back(name):
    found = forms.options(config_of(name))
    for values in changed(name):
        expected = config_of(name)(**values)
        assert cli.parse(name, ["--ckpt", CHECKPOINT, *forms.arguments(found, values)])[1] == expected
        line = ["--ckpt", CHECKPOINT, "--only", name, *forms.arguments(found, values, f"{name}.")]
        assert suite.parse(line)[2] == {name: expected}


@pytest.mark.parametrize("name", ["", "hessian"])
def test_another_value_of_every_shared_option_parses_back(name):
    found = forms.shared_options(name)
    assert {option.name for option in found} == set(forms.SHARED)
    values = {option.name: other_values(option)[0] for option in found}
    line = ["--ckpt", CHECKPOINT, *forms.arguments(found, values)]
    parsed = cli.parse(name, line)[0] if name else suite.parse(line)[0]
    assert {option.name: getattr(parsed, option.name) for option in found} == values


def test_all_options_but_folders_are_offered_and_explained():
    left_out = {}
    for name in analyses():
        found = forms.options(config_of(name))
        assert all(option.help for option in found)
        left_out[name] = {field.name for field in dataclasses.fields(config_of(name))} - {each.name for each in found}
    assert {name: fields for name, fields in left_out.items() if fields} == {"robustness": {"cifar_c"}}


@dataclasses.dataclass(frozen=True)
class Foreign:
    """What an analysis that nobody here knows might ask."""

    count: int | None = None
    """How many,
    or none."""
    kind: Literal["a", "b"] | None = None
    pair: tuple[int, float] = (1, 2.0)
    word: str = ""
    path: Path | None = None
    paths: tuple[Path, ...] = ()
    mapping: dict[str, int] = dataclasses.field(default_factory=dict)
    either: int | str = 1
    needed: int = dataclasses.field(kw_only=True)
    run: Path | None = dataclasses.field(default=None, metadata={"reads": "run"})
    folder: str = dataclasses.field(default="", metadata={"reads": "folder"})
    movie: Path | None = dataclasses.field(default=None, metadata={"writes": ".mp4"})


def test_an_unknown_config_gets_a_form_without_paths_and_odd_types():
    found = {option.name: option for option in forms.options(Foreign)}
    kinds = {"count": "whole", "kind": "choice", "pair": "list", "word": "text", "run": "file", "movie": "output"}
    assert {name: option.kind for name, option in found.items()} == kinds
    assert found["count"].help == "How many, or none."
    assert [found[name].optional for name in ("count", "kind", "pair")] == [True, True, False]
    assert forms.read(found["pair"], "3, 4.5") == (3, 4.5)


@pytest.mark.parametrize("value", [(1 / 255, 2 / 255), (0.1, 1e-7), (3.0,), (1 / 3, 0.123456789012345), ()])
def test_numbers_read_back_as_they_were(value):
    option = forms.Option("values", "list", (), items=(float,))
    assert forms.read(option, forms.shown(value)) == value


def test_fractions_are_shown_as_such():
    assert forms.shown((1 / 255, 0.5)) == "1/255 0.5"


@pytest.mark.parametrize("entered", ["x", "1 y", "nan", "inf", "1/0", "1e999", "--out=/etc/x", "0x1p3z"])
def test_no_numbers_are_refused_in_a_sentence(entered):
    option = forms.Option("my_values", "list", (), items=(float,))
    with pytest.raises(InputError, match=r"^My values takes numbers with spaces between, not '"):
        forms.read(option, entered)


HOSTILE = [
    "--out=/etc/x",
    "-x",
    "../x",
    "/etc/passwd",
    "~root",
    "a\\b",
    "folder:/etc",
    "a\0b",
    "a\x1b[0m",
    "a‮b",
    "..",
    "pkg/mod",
]


@pytest.mark.parametrize("entered", [word for word in HOSTILE if word != "folder:/etc"] + ["x folder:/etc"])
@pytest.mark.parametrize("kind", ["text", "list"])
def test_text_that_could_be_more_is_refused(entered, kind):
    option = forms.Option("layers", kind, "", items=(str,))
    with pytest.raises(InputError, match="^Layers can't begin with - or ~"):
        forms.read(option, entered)


@pytest.mark.parametrize("value", ["--out=/etc/x", "a\nb", "", "\0", Path("-x"), Path("/tmp/a\nb")])
def test_a_command_takes_no_such_word_whatever_it_came_from(value):
    for kind, given in (("file", value), ("files", ("good", value))):
        with pytest.raises(InputError, match="can't be given to a command"):
            forms.arguments([forms.Option("series", kind, None, reads="checkpoint")], {"series": given})


def test_what_is_optional_may_be_left_empty_and_what_is_not_may_not():
    whole: Any = forms.Option("passes", "whole", 3)
    with pytest.raises(InputError, match=r"^Passes is empty\.$"):
        forms.read(whole, None)
    assert forms.read(dataclasses.replace(whole, optional=True), None) is None
    assert forms.arguments([dataclasses.replace(whole, optional=True)], {"passes": None}) == ["--passes", "None"]


def test_commands_are_lists_for_this_python():
    line = ["--layers", "; rm -rf x"]
    assert forms.command("variance", line)[1:] == ["-m", "analyze.variance", *line]
    assert forms.command("", [])[1:] == ["-m", "analyze"]
