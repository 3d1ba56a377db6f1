"""The commands and their options; what they do is imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from bnfold._version import __version__
from bnfold.batch.units import parse_memory, parse_seconds
from bnfold.cli.request import ModelRequest, parse_shape
from bnfold.cli.terminal import Terminal

__all__ = ["bnfold"]

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def _files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the names of files."""
    return [CompletionItem(incomplete, type="file")]


class _Target(click.Choice[str]):
    """One of bnfold's own targets, or a witness that another package registers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from bnfold.witness.registry import known

        return str(value) if ":" in str(value) or value in known() else super().convert(value, param, ctx)


_about_the_model = _options(
    click.option(
        "--code",
        type=_FILE,
        multiple=True,
        metavar="FILE.py",
        help="Definitions of the classes in a pickled MODEL; repeatable.",
    ),
    click.option(
        "--model",
        "spec",
        metavar="SPEC",
        shell_complete=_files,
        help="package.module:factory or file.py:factory, for a file of weights.",
    ),
    click.option("--key", metavar="KEY", help="Which entry of a checkpoint holds the weights."),
    click.option("--trust", is_flag=True, help="Unpickle anything: runs code from the file."),
    click.option(
        "--input-shape",
        "shapes",
        type=parse_shape,
        multiple=True,
        metavar="1,3,224,224",
        help="Shape of an input, batch first; once per input. Found automatically for most models.",
    ),
    click.option("--inputs", type=_FILE, metavar="FILE", help="Real inputs: .npy, .npz or .safetensors."),
)
_keep = click.option(
    "--keep",
    multiple=True,
    metavar="NAME",
    help="Leave this BatchNorm (with --merge, or convolution) as it is. Repeatable.",
)
_merge = click.option("--merge", is_flag=True, help="Also merge convolutions whose sum or sequence is one convolution.")
_affines = click.option(
    "--affines",
    is_flag=True,
    help="Also fold multiplications, divisions and sums by one constant for each channel: layer scales, frozen "
    "BatchNorms by hand. Always done for an .onnx.",
)
_about_the_words = _options(
    click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only."),
    click.option("-v", "--verbose", is_flag=True, help="Print every row, and where the time goes."),
    click.option("--no-color", is_flag=True, help="No colours; NO_COLOR does the same."),
)
_dynamic = click.option(
    "--dynamic",
    metavar="batch,size",
    help="Dimensions that stay free in an export: batch, size, both, or none. What is named and cannot be free is an "
    "error.  [default: the batch; and the size, where the input shape was found and not given]",
)
_reports = click.option(
    "--report",
    "reports",
    multiple=True,
    shell_complete=_files,
    metavar="FILE",
    help="Write a report: .html, .json, .md or .xml (JUnit); - for JSON on stdout. Repeatable.",
)
_force = click.option("--force", is_flag=True, help="Replace files that exist.")
_witness = click.option(
    "--witness",
    "witnesses",
    multiple=True,
    metavar="NAME",
    help="Also prove it under this runtime: openvino, mnn, or one that another package registers. Repeatable.",
)
_seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the inputs.")


@click.group(context_settings=_CONTEXT, invoke_without_command=True)
@click.version_option(__version__, "-V", "--version", prog_name="bnfold", message="%(prog)s %(version)s")
@click.pass_context
def bnfold(context: click.Context) -> None:
    """Fold BatchNorm into convolutions and linear layers, exactly, and prove it.

    \b
    bnfold fold model.pt --code net.py         fold, verify, write ONNX and .pt2
    bnfold fold timm:resnet50                  a model by its name, of timm or torchvision
    bnfold explain model.pt bn1                what a BatchNorm computes, bit for bit
    bnfold verify model.pt model.folded.onnx   compare any two
    bnfold bench model.pt                      latency before and after
    bnfold batch models.csv -o results         thousands of models, here or on a cluster
    bnfold doctor                              what works here, and what is missing
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@bnfold.command(context_settings=_CONTEXT)
@click.argument("model", shell_complete=_files)
@click.option(
    "-o",
    "--output",
    "outputs",
    type=_FILE,
    multiple=True,
    metavar="PATH",
    help="The suffix selects the kind: .onnx, .pt2, .safetensors. Repeatable.  "
    "[default: MODEL.folded.onnx and MODEL.folded.pt2]",
)
@_about_the_model
@_dynamic
@click.option("--opset", type=int, metavar="N", help="Of the .onnx.  [default: the exporter's]")
@_keep
@_merge
@_affines
@click.option("--freeze-inputs", is_flag=True, help="Of an .onnx: make constants of inputs that have a default.")
@click.option("--flush-denormals", is_flag=True, help="Set weights that the fold made denormal to zero.")
@click.option("--strict", is_flag=True, help="Exit 4, and write no model, unless every BatchNorm folded.")
@_reports
@_witness
@click.option("--no-verify", is_flag=True, help="Write without proof.")
@_seed
@_force
@_about_the_words
def fold(**options: Any) -> int:
    """Fold MODEL, verify the result, write it.

    MODEL is a file (a pickled module, weights with --model, an .onnx), or a SPEC such as timm:densenet121.

    \b
    Examples:
      bnfold fold model.pt --code net.py
      bnfold fold weights.pth --model net.py:make -o model.onnx --report report.html
      bnfold fold torchvision.models:resnet50 --input-shape 1,3,224,224 --strict

    \b
    Exit codes: 0 done and equivalent; 1 not equivalent, no model written;
    2 usage; 3 the file is refused; 4 --strict and something did not fold;
    5 reading or writing failed; 6 capture or export failed; 70 a bug;
    130 interrupted.
    """
    from bnfold.cli.fold import FoldRequest, run

    terminal = _terminal(options, to_stderr="-" in options["reports"])
    return run(FoldRequest(about=_model_request(options), **options), terminal)


@bnfold.command(context_settings=_CONTEXT)
@click.argument("model", shell_complete=_files)
@click.argument("name", required=False)
@_about_the_model
@_keep
@_merge
@_affines
@_reports
@_seed
@_force
@_about_the_words
def explain(**options: Any) -> int:
    """Say what would become of each BatchNorm, and why.

    Nothing is folded. For one NAME, it prints the exact equation with its numbers, and the error of other formulas.

    \b
    Examples:
      bnfold explain model.pt --code net.py
      bnfold explain model.pt bn1 --code net.py
      bnfold explain torchvision.models:densenet121 -v
    """
    from bnfold.cli.explain import ExplainRequest, run

    terminal = _terminal(options, to_stderr="-" in options["reports"])
    return run(ExplainRequest(about=_model_request(options), **options), terminal)


@bnfold.command(context_settings=_CONTEXT)
@click.argument("model", metavar="ORIGINAL", shell_complete=_files)
@click.argument("candidate", shell_complete=_files)
@_about_the_model
@_witness
@_reports
@_seed
@_force
@_about_the_words
def verify(**options: Any) -> int:
    """Compare two models: are they the same function?

    Does CANDIDATE compute what ORIGINAL computes?
    Each is a file (.pt, .safetensors, .pt2, .onnx) or a SPEC. Options about a model apply to both.

    \b
    Examples:
      bnfold verify model.pt model.folded.onnx --code net.py
      bnfold verify model.pt model.folded.pt2 --code net.py --trust
      bnfold verify old.safetensors new.safetensors --model net.py:make --inputs real.npz

    \b
    Exit codes: 0 equivalent; 1 not equivalent; others as for `bnfold fold`.
    """
    from bnfold.cli.verify import VerifyRequest, run

    terminal = _terminal(options, to_stderr="-" in options["reports"])
    return run(VerifyRequest(about=_model_request(options), **options), terminal)


@bnfold.command(context_settings=_CONTEXT)
@click.argument("model", shell_complete=_files)
@_about_the_model
@_keep
@_merge
@_affines
@click.option(
    "--target",
    "targets",
    type=_Target(["eager", "channels-last", "compile", "onnxruntime", "mnn", "openvino"]),
    multiple=True,
    help="What to run on, also another witness; repeatable.  [default: eager, compile, onnxruntime]",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="N",
    help="Batch size; repeatable.  [default: that of the inputs given, else 1]",
)
@_dynamic
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Number of threads.  [default: one per core]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, max=86400),
    default=5.0,
    show_default=True,
    help="How long to measure each target at each batch size.",
)
@click.option("--cpu-time", is_flag=True, help="Count CPU time, for a machine that other work shares.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout; the same as --report -.")
@_reports
@_seed
@_force
@_about_the_words
def bench(**options: Any) -> int:
    """Measure how fast MODEL is before and after folding.

    Both run in turn, in torch eager, under torch.compile where it works, and under ONNX Runtime. Nothing is verified,
    and only reports are written: see `bnfold fold`.

    \b
    Examples:
      bnfold bench model.pt --code net.py
      bnfold bench torchvision.models:resnet50 --target onnxruntime --batch 1 --batch 16 --threads 1
    """
    from bnfold.cli.bench import BenchRequest, run

    if options.pop("as_json") and "-" not in options["reports"]:
        options["reports"] = (*options["reports"], "-")
    terminal = _terminal(options, to_stderr="-" in options["reports"])
    return run(BenchRequest(about=_model_request(options), **options), terminal)


def _parsed_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return convert


@bnfold.command(context_settings=_CONTEXT)
@click.argument("manifest", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, metavar="DIR", help="Folder of all results.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time.  [default: one a core]")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Run on a Ray cluster: auto, HOST:PORT, or nothing for the one that is there, or one made here.",
)
@click.option("--ship", is_flag=True, help="Send files to the nodes and back, where they share no storage.")
@click.option(
    "--timeout", type=_parsed_by(parse_seconds), metavar="S", help="Of one model: 90, 15m, 2h.  [default: none]"
)
@click.option(
    "--memory",
    type=_parsed_by(parse_memory),
    metavar="SIZE",
    help="Of one model, its children included: 3GiB.  [default: twice its estimate]",
)
@click.option(
    "--again",
    type=click.Choice(["FAILED", "ALL"], case_sensitive=False),
    help="Do models again that have a record: those that are not equivalent, or all.",
)
@_reports
@_about_the_words
def batch(**options: Any) -> int:
    """Fold and prove many models, each in a process of its own.

    MANIFEST is a .csv or .jsonl file with a row for each model, and columns named like the options of `bnfold fold`
    (source, name, code, model, input_shape, ...), or a folder of model files. The options below that are not of the
    batch are for models that have nothing in that column. Run again, it does what is not done.

    \b
    Examples:
      bnfold batch models/ -o results
      bnfold batch models.csv -o results --jobs 4 --timeout 15m --memory 8GiB
      bnfold batch models.jsonl -o /shared/results --ray=auto --again FAILED

    \b
    Exit codes: 0 all are equivalent; 1 some are not; 2 usage, a bad row too;
    5 reading or writing failed; 6 Ray is not installed; 130 interrupted.
    """
    from bnfold.batch.columns import columns
    from bnfold.cli.many import BatchRequest, run

    terminal = _terminal(options, to_stderr="-" in options["reports"])
    given = {
        name: column.default_from(options.pop(column.option.name))
        for name, column in columns().items()
        if column.option in batch.params
    }
    return run(BatchRequest(options=given, **options), terminal)


_taken = {name for parameter in batch.params for name in parameter.opts}
batch.params += [each for each in fold.params if isinstance(each, click.Option) and not _taken & set(each.opts)]


@bnfold.command(context_settings=_CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@_about_the_words
def doctor(as_json: bool, **options: Any) -> int:
    """Say what works on this machine, and what is missing.

    It also says how to get what is missing. Everything bnfold does is tried on a tiny network; nothing is written.

    \b
    Examples:
      bnfold doctor
      bnfold doctor --json > machine.json

    \b
    Exit codes: 0 all that is needed works; 6 something does not.
    """
    from bnfold.cli.doctor import run

    return run(_terminal(options, to_stderr=as_json), as_json=as_json)


@bnfold.command(context_settings=_CONTEXT)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what makes a shell complete bnfold's words.

    Commands, options and files are completed. Run the line once, and open a new shell.

    \b
    Examples:
      bnfold completion bash >> ~/.bashrc
      bnfold completion zsh >> ~/.zshrc
      bnfold completion fish > ~/.config/fish/completions/bnfold.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # The class's own source() would start bash to ask for its version, and print if it is another than it likes.
    Terminal().write_raw(ShellComplete.source(kind(bnfold, {}, "bnfold", "_BNFOLD_COMPLETE")) + "\n")
    return 0


def _terminal(options: dict[str, Any], *, to_stderr: bool) -> Terminal:
    return Terminal(
        quiet=options.pop("quiet"),
        verbose=options.pop("verbose"),
        color=not options.pop("no_color"),
        results_to_stderr=to_stderr,
    )


def _model_request(options: dict[str, Any]) -> ModelRequest:
    names = ("model", "code", "spec", "key", "trust", "shapes", "inputs", "seed")
    return ModelRequest(**{name: options.pop(name) for name in names})
