"""SIGKILL at random moments: every acknowledged row is in the log exactly once and in order."""

import subprocess
import sys

from vitok.decisions import DecisionLog, Tail, read
from vitok.decisions.segments import segments

# One process imports once and forks the writers; a writer tells of each block after its append has returned.
WRITERS = """if True:
    import importlib.util, os, random, signal, sys, time
    spec = importlib.util.spec_from_file_location("blocks", sys.argv[1])
    blocks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blocks)
    from vitok.decisions import DecisionLog
    generator = random.Random(7)
    start = 0
    for run in range(20):
        inbox, outbox = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(inbox)
            log = DecisionLog(sys.argv[2], blocks.SCHEMA, rows_per_segment=40)
            sizes = random.Random(run)
            at = start
            while True:
                n = sizes.randrange(1, 9)
                log.append(blocks.block_of(at, n))
                at += n
                os.write(outbox, f"{at}\\n".encode())
        os.close(outbox)
        with os.fdopen(inbox, "rb") as told:
            for _ in range(generator.randrange(1, 40)):
                last = told.readline()
            until = time.perf_counter() + generator.random() * 0.002
            while time.perf_counter() < until:
                pass
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            rest = told.read().splitlines()
            acknowledged = int(rest[-1] if rest else last)
        print(start, acknowledged, flush=True)
        start = acknowledged + 1000
"""


def test_kill_twenty_times(tmp_path, schema, make_block):
    conftest = __file__.replace("test_crash.py", "conftest.py")
    command = [sys.executable, "-c", WRITERS, conftest, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    runs = [tuple(int(word) for word in line.split()) for line in done.stdout.splitlines()]
    assert len(runs) == 20
    before = Tail(tmp_path).read()["request_id"].to_list()
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(10**6))
    after = read(tmp_path)["request_id"].to_list()
    assert after == [*before, "r1000000"]
    assert all(part.sealed for part in segments(tmp_path))
    numbers = [int(name[1:]) for name in before]
    for start, acknowledged in runs:
        written = [number for number in numbers if start <= number < start + 1000 or start <= number < acknowledged]
        # In order, once each; beyond what was acknowledged at most the one block whose writer died before telling.
        assert written == list(range(start, start + len(written)))
        assert acknowledged - start <= len(written) <= acknowledged - start + 8
    assert numbers == sorted(set(numbers))
