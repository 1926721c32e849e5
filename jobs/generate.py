"""`ray job submit --working-dir . -- python jobs/generate.py SPEC [key=value ...]`."""

import sys

from genai_ray.cli import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
