"""Start of training against a bare TorchTrainer, side by side: `python benchmarks/start.py`.

Both run on one Ray of two CPUs with two workers, in turn. Bare: `TorchTrainer.fit()` of an empty
loop. Ours: `train()` of one step, from reading the data to the checkpoint in the store, so more
than the start is counted on our side. Prints the seconds and the difference.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time


def empty_loop(config: dict[str, object]) -> None:
    return None


def bare(folder: str) -> float:
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    started = time.perf_counter()
    TorchTrainer(
        empty_loop,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=folder, logging_config=LoggingConfig(log_level="ERROR")),
    ).fit()
    return time.perf_counter() - started


def ours(folder: str, number: int) -> float:
    from genai_ray import modalities
    from genai_ray.training.train import train

    spec = modalities.parse(
        {
            "name": f"r{number}",
            "store": folder,
            "model": {"preset": "dcgan", "conditional": True},
            "train": {"workers": 2, "samples": 128},
        }
    )
    started = time.perf_counter()
    train(spec)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for number in range(options.rounds + 1):  # the first round warms up
            pair = bare(folder), ours(folder, number)
            if number:
                times["bare"].append(pair[0])
                times["ours"].append(pair[1])
                print(
                    f"bare {pair[0]:6.2f} s   ours {pair[1]:6.2f} s   difference {pair[1] - pair[0]:+.2f} s", flush=True
                )
    differences = [o - b for b, o in zip(times["bare"], times["ours"], strict=True)]
    print(f"median difference {statistics.median(differences):+.2f} s")
    ray.shutdown()


if __name__ == "__main__":
    main()
