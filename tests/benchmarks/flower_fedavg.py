"""Flower's part of aggregation.py: its FedAvg strategy's aggregation, from files to files. It needs flwr alone.

    python flower_fedavg.py write DIRECTORY CLIENTS MATRICES
    python flower_fedavg.py worker DIRECTORY CLIENTS [sha256]

Each of a client's matrices is a file with the bytes that Flower keeps of it (``np.save``): nothing is converted.
Flower does not hash updates where it averages them; its SuperLink does when it stores them: ``sha256``.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np

SIZE = 65_536


def main():
    """Write the clients' files, or do a round for each line of the standard input."""
    action, directory, clients, *more = sys.argv[1:]
    directory, clients = Path(directory, "flower"), int(clients)
    if action == "write":
        for client in range(clients):
            (directory / str(client)).mkdir(parents=True)
            draw = np.random.default_rng(client)
            for matrix in range(int(more[0])):
                np.save(directory / str(client) / f"{matrix}.npy", draw.standard_normal(SIZE, dtype=np.float32))
        return
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        count = aggregate(directory, clients, "sha256" in more)
        used = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({**used, "bytes": count, "peak": peak_mb()}), flush=True)


def aggregate(directory, clients, hashed):
    """Read the updates, average them as the strategy FedAvg does, and write the result; return the updates' bytes."""
    from flwr.common import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    replies, count = [], 0
    for client in range(clients):
        arrays = {}
        for path in (directory / str(client)).iterdir():
            data = path.read_bytes()
            if hashed:
                hashlib.sha256(data).hexdigest()
            arrays[path.stem] = Array(dtype="float32", shape=(SIZE,), stype="numpy.ndarray", data=data)
            count += 4 * SIZE
        metrics = MetricRecord({"num-examples": 100 + client})
        replies.append(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}))
    for name, array in aggregate_arrayrecords(replies, "num-examples").items():
        (directory / f"{name}.npy").write_bytes(array.data)
    return count


def peak_mb():
    """Peak of the resident memory so far."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
