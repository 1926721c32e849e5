"""`ray job submit --working-dir . -- python jobs/evaluate.py SPEC [key=value ...]`."""

import sys

from genai_ray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
