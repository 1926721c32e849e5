"""`ray job submit --working-dir . -- python jobs/pipeline.py SPEC [key=value ...]`."""

import sys

from genai_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
