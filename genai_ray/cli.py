"""genai-ray VERB SPEC [key=value ...].

Exit codes: 0 done, 1 unexpected, 2 bad configuration or usage, 3 incomplete (the same command resumes), 4 a gate
failed. Heavy packages are imported by the verb that needs them, so that help and usage errors are shown at once.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from genai_ray.errors import GateError, IncompleteError, ParityError, UserError
from genai_ray.progress import outline

app = typer.Typer(
    help="From real data to published synthetic data: train, export, generate, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
local_app = typer.Typer(help="The embedded stack: a Ray head and an S3 server on 127.0.0.1.", no_args_is_help=True)
app.add_typer(local_app, name="local")

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="YAML file, see jobs/specs/")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.workers=2")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Folder = Annotated[Path, typer.Option("--folder", help="where the stack keeps keys and objects")]
Port = Annotated[int | None, typer.Option(help="chosen among the free ones if not given")]
_FOLDER = Path(".genai-ray")
_INTERRUPTED = 130  # what Typer makes of a KeyboardInterrupt


@app.command()
def run(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train, export, generate and evaluate; resumes where an earlier run stopped."""
    from genai_ray.pipeline import run as run_all

    result = run_all(_load(spec, overrides))
    _show(result, as_json, result.summary)


@app.command()
def train(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train the model; resumes from its newest checkpoint."""
    from genai_ray.training.train import train as verb

    result = verb(_load(spec, overrides))
    _show(result, as_json, f"trained on {result.samples:,} samples, {result.rate:,.0f}/s")


@app.command()
def export(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Export the trained model to one ONNX file."""
    from genai_ray.export import export as verb

    result = verb(_load(spec, overrides))
    _show(result, as_json, f"{result.uri}: {result.bytes:,} bytes, digest {result.digest}")


@app.command()
def generate(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Generate the data set from the ONNX file; resumes from its receipts."""
    from genai_ray.dataset.generate import generate as verb

    result = verb(_load(spec, overrides))
    _show(
        result,
        as_json,
        f"{result.uri}: {result.rows:,} rows in {result.files:,} files, "
        f"{result.bytes:,} bytes, {result.rate:,.0f} rows/s",
    )


@app.command()
def evaluate(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Measure the data set, write the report, publish if the gates pass."""
    from genai_ray.evaluate import evaluate as verb
    from genai_ray.pipeline import score_table

    result = verb(_load(spec, overrides))
    _show(result, as_json, score_table(result))


@app.command()
def plan(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """What the data set will take: shards, files, bytes, time and cost; writes nothing."""
    from genai_ray.plan import estimate as verb

    estimate = verb(_load(spec, overrides))
    _show(estimate, as_json, outline({key: value for key, value in estimate.items() if key != "data"}))


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="of a data set, or of its run")],
    regenerate: Annotated[
        int, typer.Option(min=0, help="number of random shards to generate again and compare by byte")
    ] = 0,
    repair: Annotated[bool, typer.Option(help="generate again what is missing or damaged")] = False,
    as_json: AsJson = False,
) -> None:
    """Hash a data set again, read its schema and ids; exit code 3 if it is damaged."""
    from genai_ray.dataset.verify import verify as verb

    result = verb(uri, regenerate=regenerate, repair=repair)
    _show(result, as_json, result.summary)
    if not result.whole:
        raise typer.Exit(IncompleteError.exit_code)


@app.command()
def inspect(uri: str, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """What a run, a data set or a model file holds, or what is read of a table or of images, with data.…=VALUE."""
    from genai_ray.inspect import inspect as verb

    contents = verb(uri, overrides or [])
    _show(contents, as_json, outline(contents))


@app.command()
def presets(as_json: AsJson = False) -> None:
    """The named models, with their sources and values."""
    from genai_ray import modalities

    named = modalities.presets()
    lines = []
    for name, preset in named.items():
        values = ", ".join(f"{k}={v}" for k, v in preset.values.items())
        lines += [name, f"  {preset.about}", f"  {preset.source}", f"  {values}"]
    _show({name: preset.model_dump() for name, preset in named.items()}, as_json, "\n".join(lines))


@app.command()
def schema() -> None:
    """The JSON Schema of a spec, for editors."""
    from genai_ray import modalities

    typer.echo(json.dumps(modalities.schema(), indent=2))


@local_app.command()
def up(folder: Folder = _FOLDER, s3_port: Port = None, dashboard_port: Port = None, gcs_port: Port = None) -> None:
    """Start the stack and print how to reach it."""
    from genai_ray import local

    stack = local.up(folder, s3_port=s3_port, dashboard_port=dashboard_port, gcs_port=gcs_port)
    typer.echo(
        f"S3        {stack.environment['AWS_ENDPOINT_URL']}, bucket {local.BUCKET}\n"
        f"Ray       {stack.environment['RAY_API_SERVER_ADDRESS']}\n"
        'Keys      eval "$(genai-ray local env)"\n'
        "End       genai-ray local down"
    )


@local_app.command()
def down(folder: Folder = _FOLDER) -> None:
    """Stop the stack; its objects stay."""
    from genai_ray import local

    typer.echo("down" if local.down(folder) else "was not up")


@local_app.command()
def status(folder: Folder = _FOLDER) -> None:
    """Whether the stack is up; exit code 3 if not."""
    from genai_ray import local

    stack = local.find(folder)
    if stack is None or not stack.alive:
        typer.echo("down")
        raise typer.Exit(IncompleteError.exit_code)
    typer.echo(f"up  {stack.environment['RAY_API_SERVER_ADDRESS']}")


@local_app.command()
def env(folder: Folder = _FOLDER) -> None:
    """Shell lines that set endpoint and keys; meant for eval."""
    from genai_ray import local

    stack = local.find(folder)
    if stack is None or not stack.alive:
        raise UserError("local", str(folder), "must be up", "Run `genai-ray local up` first.")
    for name, value in stack.environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@local_app.command("run")
def local_run(
    spec: SpecPath,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="where the report is copied to")] = Path("runs"),
    folder: Folder = _FOLDER,
) -> None:
    """Start the stack, submit SPEC as a job, follow it, fetch the report, stop the stack."""
    from genai_ray import local

    def verify_sample(run_uri: str) -> None:
        from genai_ray.dataset.verify import verify as verb

        typer.echo(f"\n$ genai-ray verify {run_uri} --regenerate 2")
        result = verb(run_uri, regenerate=2)
        typer.echo(result.summary)
        if not result.whole:
            raise IncompleteError(f"{result.uri} differs from its manifest")

    code = local.run_job(spec, overrides or [], output, folder=folder, then=verify_sample)
    if (output / "report.html").exists():
        typer.echo(
            f"Report    {output / 'report.html'}\nPreview   {output / 'preview.png'}\n"
            f"Yours     genai-ray run {spec} name=mine store=./runs data.source=folder "
            "data.root=DIR data.size=32"
        )
    raise typer.Exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `genai-ray`: runs a verb and exits with its code."""
    try:
        code = app(list(arguments) if arguments is not None else None, standalone_mode=False)
        if code == _INTERRUPTED:
            typer.echo("\nstopped; the same command resumes", err=True)
            code = IncompleteError.exit_code
    except (UserError, IncompleteError, GateError, ParityError) as error:
        typer.echo(f"error: {error}", err=True)
        code = error.exit_code
    except typer.Abort:
        code = 1
    except Exception as error:
        message = getattr(error, "format_message", None)  # click's usage errors have it
        if message is None:
            raise
        typer.echo(f"error: {message()}", err=True)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code or 0)


def _load(path: str, overrides: list[str] | None) -> Any:
    from genai_ray import modalities

    return modalities.load(path, overrides or [])


def _show(result: Any, as_json: bool, summary: str) -> None:
    values = asdict(result) if hasattr(result, "__dataclass_fields__") else result
    typer.echo(json.dumps(values, indent=2) if as_json else summary)


if __name__ == "__main__":
    main()
