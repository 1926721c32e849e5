"""`ray job submit --working-dir . -- python jobs/train.py SPEC [key=value ...]`."""

import sys

from genai_ray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
