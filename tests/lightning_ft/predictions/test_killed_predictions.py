"""Laws of predictions in processes of their own: killed ones go on, and memory does not grow with the rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

from small_tasks import NUM_ROWS, predict, small

# ends itself as a kill does at a random one of the moments in which something is brought to the disk
KILLS = """
import os, random, signal, sys
from pathlib import Path
from small_tasks import predict, small

folder, bert, gpt2 = map(Path, sys.argv[1:])
draw = random.Random(int(folder.name))
model, data = small("classes", folder, bert, gpt2)
num_kills = ended = 0
while not ended:
    left, fsync = draw.randint(0, 6), os.fsync

    def killing(handle):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    child = os.fork()
    if child == 0:
        os.fsync = killing
        predict(model, data, folder / "found.csv", save_every=0)
        os._exit(0)
    ended = os.waitpid(child, 0)[1] == 0
    num_kills += not ended
    assert num_kills < 40
print(num_kills)
"""

MEMORY = """
import json, os, sys, threading, time
from pathlib import Path
from small_tasks import predict, small, texts

folder, bert, gpt2 = map(Path, sys.argv[1:])


def held():
    # what files map into memory does not count: the system takes it back when it needs it
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def watch():
    while True:
        peaks[0] = max(peaks[0], held())
        time.sleep(0.005)


found = []
for num_rows, suffixes in ((8000, ["csv"]), (24000, ["csv", "parquet"])):
    below = folder / str(num_rows)
    below.mkdir()
    file = texts(below, num_rows)
    for suffix in suffixes:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            model, data = small("classes", folder, bert, gpt2)
            data.batch_size, data.files["predict"] = 500, file
            before = held()
            peaks = [before]
            threading.Thread(target=watch, daemon=True).start()
            predict(model, data, folder / f"found.{suffix}")
            os.write(writing, str(peaks[0] - before).encode())
            os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        found.append(float(os.read(reading, 99)))
print(json.dumps(found))
"""


def run(script: str, *arguments: Path) -> str:
    """Run a script that imports what the tests share; return what it prints."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_prediction_killed_at_random_moments_ends_as_if_it_never_was(
    tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "5"
    folder.mkdir()
    num_kills = int(run(KILLS, folder, tiny_bert, tiny_gpt2))
    assert num_kills >= 3
    model, data = small("classes", folder, tiny_bert, tiny_gpt2)
    whole = predict(model, data, tmp_path / "whole.csv").read_bytes()
    assert (folder / "found.csv").read_bytes() == whole
    assert len(whole.splitlines()) == NUM_ROWS + 1
    assert sorted(file.name for file in folder.iterdir()) == ["found.csv", "texts.csv"]


def test_three_times_the_rows_take_the_same_memory(tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    some, *many = json.loads(run(MEMORY, tmp_path, tiny_bert, tiny_gpt2))  # MB
    assert max(many) < some + 6
