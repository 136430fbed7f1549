"""One side of a case in a process of its own: prints its units of work, then runs it once for every line that it reads.

    python benchmarks/peers/worker.py ours gato

Answers are lines of JSON: first what the work is, then each run's seconds and the processors' seconds, at the end of the input
the peak memory.
"""

import contextlib
import importlib
import json
import resource
import sys
import time


def main() -> None:
    """Serves one case until its input ends."""
    module, name, *arguments = sys.argv[1:]
    if module == "ours":
        from generalist.system.compilation_cache import use_compilation_cache

        use_compilation_cache()  # as train.py does
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print too
        run, work = importlib.import_module(module).CASES[name](*arguments)
        run()
    print(json.dumps(work), file=answers, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            run()
        taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
        print(json.dumps(taken), file=answers, flush=True)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), file=answers, flush=True)


if __name__ == "__main__":
    main()
