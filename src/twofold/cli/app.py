"""The commands. Each imports what it needs when it runs, so that `twofold --help` answers at once."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    help="The algorithms of efficient LLM inference, twofold: once to read, once to run, and a machine that proves the two agree.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: Rich would cost more than the rest of the start
    pretty_exceptions_enable=False,
)

Patterns = Annotated[list[str] | None, typer.Argument(metavar="[PATTERN]...", help="family, family.algorithm, or a glob of these")]
Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class Profile(StrEnum):
    quick = "quick"
    dev = "dev"
    ci = "ci"
    gpu = "gpu"
    nightly = "nightly"


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the chapters: title, paper, forms, and which of the four parts are there (docs: in a checkout only)."""
    from twofold.cli import listing

    _print(listing.rows()) if as_json else listing.show()


@app.command()
def show(chapter: Annotated[str, typer.Argument(metavar="FAMILY.ALGORITHM")]) -> None:
    """Show the spec of a chapter."""
    from twofold import discovery
    from twofold.cli import listing

    with _usage_errors(discovery.Unknown):
        listing.show_spec(discovery.find(chapter))


@app.command()
def check(
    patterns: Patterns = None,
    target: Annotated[str | None, typer.Option(metavar="MODULE", help="put this module under test instead of twofold.fast")] = None,
    device: Annotated[Device | None, typer.Option(help="where tensors live (default: the GPU if there is one)")] = None,
    profile: Annotated[Profile, typer.Option(help="how many examples hypothesis draws")] = Profile.dev,
    as_json: Json = False,
) -> None:
    """Hold an implementation to the specs, and say how close it comes to every bound.

    Ends with 0 if nothing failed, with 1 if anything did or no implementation was checked, with 2 for an unknown name.
    """
    from twofold import discovery
    from twofold.cli import check as checking

    with _usage_errors(discovery.Unknown, checking.Unavailable):
        result = checking.run(patterns or (), target, device and device.value, profile.value, progress=not as_json)
    _print(result) if as_json else checking.show(result)
    checked = result["implementation"] or list(patterns or ()) == ["suite"]
    raise typer.Exit(0 if result["passed"] and checked and not result["failed"] else 1)


@app.command()
def bugs(
    patterns: Patterns = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="run every test of the chapter, and tell all that notice")] = False,
    proofs: Annotated[bool, typer.Option("--prove", help="ask the prover instead, of samplers: which claims does each bug refute")] = False,
    as_json: Json = False,
) -> None:
    """Plant known bugs one by one, and see the suite catch each. Ends with 1 if one survives."""
    from twofold import discovery
    from twofold.cli import bugs as museum

    if proofs:
        with _usage_errors(discovery.Unknown, museum.Unavailable):
            found = museum.prove(patterns or (), progress=not as_json)
        _print(found) if as_json else museum.show_proofs(found)
        raise typer.Exit(0)
    with _usage_errors(discovery.Unknown, museum.Unavailable):
        results = museum.run(patterns or (), matrix, progress=not as_json)
    _print(results) if as_json else museum.show(results)
    raise typer.Exit(0 if results and all(each["killed"] for each in results) else 1)


@app.command()
def prove(
    sampler: Annotated[str, typer.Argument(metavar="CHAPTER|MODULE:FUNCTION", help="a chapter, or anybody's verifier")],
    examples: Annotated[int, typer.Option(min=1, help="random pairs of models per claim")] = 50,
    as_json: Json = False,
) -> None:
    """Enumerate the exact law of a sampler on random models, and certify that it is the one it claims, or refute it.

    Ends with 0 if every claim held, with 1 if one was refuted, with 2 for a name that is no sampler.
    """
    from twofold import discovery
    from twofold.cli import prove as proofs

    with _usage_errors(discovery.Unknown, proofs.Unavailable):
        results = proofs.run(sampler, examples)
    _print(results) if as_json else proofs.show(sampler, results)
    raise typer.Exit(0 if all(each["certified"] for each in results) else 1)


@app.command()
def bench(patterns: Patterns = None, as_json: Json = False) -> None:
    """Measure speed against peers and against what the hardware can do."""
    from twofold.cli import bench as benchmarks

    with _usage_errors(benchmarks.Unavailable):
        raise typer.Exit(benchmarks.run(patterns or (), as_json))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell whether this machine can be trusted: versions, GPU, interpreter, known-bad compilers. Ends with 1 if not."""
    from twofold.cli import doctor as medicine

    findings = medicine.examine()
    _print(findings) if as_json else medicine.show(findings)
    raise typer.Exit(0 if findings["healthy"] else 1)


@app.command()
def demo() -> None:
    """A tour: speculative decoding on a real text, measured, and proved to lose nothing."""
    from twofold import demo as tour

    raise typer.Exit(tour.main())


@contextmanager
def _usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """What the caller asked for cannot be done: one line on stderr, and exit code 2."""
    try:
        yield
    except kinds as error:
        print(f"twofold: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _print(result: Any) -> None:
    print(json.dumps(result, indent=2, ensure_ascii=False))
