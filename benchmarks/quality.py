"""Quality of what is shipped: `python benchmarks/quality.py SPEC [key=value ...]`.

Runs the spec from training to the report once for each seed, or with --presets once for each
preset (or for those that are named behind it), and prints a Markdown table: each score beside the
same score of real images, as in the report, and the time of the whole run. --seeds 0 1 2 is the
default without --presets.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator

from genai_ray import modalities
from genai_ray.pipeline import PipelineResult, run
from genai_ray.spec import Spec


def row(name: str, spec: Spec, result: PipelineResult) -> str:
    fake, real = result.evaluate.fake, result.evaluate.real
    cells = [
        name,
        f"{result.train.rate:,.0f}",
        f"{result.seconds / 60:.1f} min",
        f"{fake['agreement']:.3f} ({real['agreement']:.3f})" if spec.model.conditional else "-",
        *(f"{fake[k]:.2f} ({real[k]:.2f})" for k in ("fid", "precision", "recall", "coverage")),
        f"{fake['near_copy_rate']:.3f} ({real['near_copy_rate']:.3f})",
    ]
    return f"| {' | '.join(cells)} |"


def runs(options: argparse.Namespace, store: str) -> Iterator[tuple[str, Spec]]:
    chosen_presets = (
        (None,) if options.presets is None else options.presets or list(modalities.modality("image").presets)
    )
    for preset in chosen_presets:
        for seed in options.seeds or ([0] if preset else [0, 1, 2]):
            name = preset or f"seed {seed}"
            chosen = [f"model.preset={preset}"] if preset else []
            given = options.overrides
            if preset == "mlp_gan":  # a fully connected network has widths of its own
                given = [o for o in given if not o.startswith("model.width")]
            chosen += given
            chosen += ["evaluate.gates={}", f"name={name.replace(' ', '-')}", f"seed={seed}", f"store={store}"]
            yield (f"`{preset}`" if preset else name), modalities.load(options.spec, chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--presets", nargs="*", choices=modalities.presets(), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+")
    options = parser.parse_intermixed_args()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    columns = ("", "samples/s", "whole run", "agreement", "FID", "precision", "recall", "coverage", "near copies")
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as store:
        for name, spec in runs(options, store):
            with contextlib.redirect_stderr(io.StringIO()):
                result = run(spec)
            print(row(name, spec, result), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
