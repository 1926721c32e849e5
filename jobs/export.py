"""`ray job submit --working-dir . -- python jobs/export.py SPEC [key=value ...]`."""

import sys

from genai_ray.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
