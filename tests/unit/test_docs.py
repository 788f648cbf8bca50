"""What README and docs show is true: links, commands, options, outputs, tables and code."""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import autopeft
from autopeft.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_lines(text: str) -> Iterator[str]:
    """Yields the command lines of a page's fenced blocks, without comments and what they are piped into."""
    for language, block in FENCE.findall(text):
        for line in block.splitlines():
            command = line.removeprefix("$ ") if language == "console" else line
            if (language == "sh") or (language == "console" and line.startswith("$ ")):
                yield command.partition(" #")[0].partition(" | ")[0].strip()


def test_the_pages_that_a_stranger_looks_for_are_there() -> None:
    wanted = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md"}
    assert wanted | {"docs/adding-a-method.md", "docs/cli.md"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    missing = []
    for link in LINK.findall(without_code(read(name))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            missing.append(link)
    assert missing == []


def test_the_method_table_and_the_shown_outputs_are_what_the_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOPEFT_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(ROOT / "docs")
    script: ModuleType = importlib.import_module("refresh_readme")
    text = read("README.md")
    assert script.refreshed(text) == text, "call: python docs/refresh_readme.py"


def test_the_method_table_has_a_line_for_every_method() -> None:
    from autopeft.methods import method_names

    table = read("README.md").partition("<!-- methods: begin -->")[2].partition("<!-- methods: end -->")[0]
    assert [line.split("`")[1] for line in table.strip().splitlines()[2:]] == list(method_names())


@pytest.mark.parametrize("name", NAMES)
def test_every_shown_command_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)
    for line in shell_lines(read(name)):
        program, *words = shlex.split(line) or [""]
        if program == "make":
            assert words[0] in targets, line
        elif program == "autopeft":
            # Parses as the shell would have it parsed, and raises click.UsageError if it is wrong; runs nothing.
            cli.commands[words[0]].make_context(words[0], words[1:])
        else:
            assert program in ("", "pip", "python", "export"), line


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        cli.commands["suggest"].make_context("suggest", ["--modle", "llama-3.1-8b"])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_named_in_the_text_exists(name: str) -> None:
    named = set(re.findall(r"`autopeft ([a-z][a-z-]*)", read(name)))
    assert named <= set(cli.commands)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_the_command_page_names_every_option(command: str) -> None:
    page = read("docs/cli.md")
    options = {
        option for parameter in cli.commands[command].params for option in [*parameter.opts, *parameter.secondary_opts]
    }
    assert {option for option in options if option.startswith("-")} - set(OPTION.findall(page)) == set()


def test_the_command_page_names_no_option_that_does_not_exist() -> None:
    known = {"--help", "-h", "--version", "-m"}  # click's own, and python's
    for command in (cli, *cli.commands.values()):
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    assert set(OPTION.findall(read("docs/cli.md"))) - known == set()


def test_exit_codes_are_those_of_the_program() -> None:
    from autopeft import errors

    codes = sorted(value for name, value in vars(errors).items() if name.startswith("EXIT_"))
    for name in ("README.md", "docs/cli.md"):
        section = read(name).partition("## Exit codes")[2].partition("\n## ")[0]
        assert [int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)] == codes


def test_json_keys_of_the_command_page_are_those_of_the_types() -> None:
    from autopeft.specs import MemoryEstimate, Verdict

    page = read("docs/cli.md")
    for record in (MemoryEstimate, Verdict):
        assert {name for name in record.__dataclass_fields__ if f"`{name}`" not in page} == set()


def test_the_layers_of_the_architecture_page_are_the_enforced_ones() -> None:
    import tomllib

    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    section = read("docs/architecture.md").partition("## Layers")[2]
    assert section.split("```")[1].strip().splitlines() == layers


def test_the_run_folder_of_the_architecture_page_is_the_real_one() -> None:
    from autopeft.search import RunFolder

    page = read("docs/architecture.md")
    files = {value.name for name, value in vars(RunFolder(Path("run"))).items() if isinstance(value, Path)}
    shown = {name for name in files if not name.startswith(".")} - {"run", "cache"}
    assert {name for name in shown if name not in page} == set()


def test_readme_examples_in_python_give_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = [block for language, block in FENCE.findall(read("README.md")) if language == "python"]
    assert blocks
    assert run_doctest("\n".join(blocks), "README.md") == 0


def test_a_wrong_example_would_be_noticed() -> None:
    assert run_doctest(">>> 1 + 1\n3\n", "nowhere") == 1


def run_doctest(text: str, name: str) -> int:
    """Returns how many examples of a text failed."""
    parsed = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert parsed.examples
    return doctest.DocTestRunner(verbose=False).run(parsed).failed


def modules_with_doctests() -> list[str]:
    found = pkgutil.walk_packages(autopeft.__path__, "autopeft.")
    paths = {info.name: ROOT.joinpath(*info.name.split(".")) for info in found}
    files = {name: path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for name, path in paths.items()}
    return sorted(name for name, file in files.items() if ">>> " in file.read_text(encoding="utf-8"))


def test_examples_in_docstrings_give_what_they_say() -> None:
    for name in modules_with_doctests():
        result = doctest.testmod(importlib.import_module(name))
        assert result.attempted, f"{name} has >>> outside its docstrings"
        assert result.failed == 0, name


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page on adding a method describes."""
    folder = tmp_path_factory.mktemp("plugins")
    files = dict(NAMED_FILE.findall(read("docs/adding-a-method.md")))
    assert set(files) == {"methods/ortho.py", "search_spaces/ortho.yaml", "test_ortho.py"}
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The registry is read once a process, so methods of others are tried in one of their own.
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"AUTOPEFT_PLUGINS": str(folder)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def test_the_method_of_the_page_is_registered_and_recommended(plugin: Path) -> None:
    arguments = ["--model", "llama-3.1-8b", "--data", "data/kjv_to_web.jsonl", "--hardware", "a100-80gb"]
    done = run_python(plugin, "-m", "autopeft", "suggest", *arguments, "--method", "ortho")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^1 +ortho +\d+ ", done.stdout, re.MULTILINE), done.stdout


def test_the_method_of_the_page_is_searched(plugin: Path, tmp_path: Path) -> None:
    inputs = ["--model", "smollm2-135m-instruct", "--data", "data/kjv_to_web.jsonl", "--method", "ortho"]
    limits = ["--dry-run", "--trials", "2", "--output", str(tmp_path / "run")]
    done = run_python(plugin, "-m", "autopeft", "run", *inputs, *limits)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.jsonl").read_text(encoding="utf-8").count('"method":"ortho"') >= 3


def test_the_method_of_the_page_holds_the_contract(plugin: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = run_python(plugin, "-m", "pytest", *options, str(plugin / "test_ortho.py"))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
