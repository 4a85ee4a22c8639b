"""What calls cost, and what a program's output comes at: bench.py SNAPSHOT BYTES. Prints {"call": [nanoseconds…], "stream": [seconds…]}."""

import json
import sys
import time

import supermachine

call, stream = [], []
with supermachine.Image.from_snapshot(sys.argv[1]) as image, image.start() as vm:
    for _ in range(3000):
        began = time.perf_counter_ns()
        vm.info()
        call.append(time.perf_counter_ns() - began)
    for _ in range(3):
        with vm.exec(["head", "-c", sys.argv[2], "/dev/zero"]) as p:
            assert p.stdout is not None
            began, n = time.perf_counter(), 0
            while data := p.stdout.read(1 << 20):
                n += len(data)
            stream.append(time.perf_counter() - began)
            assert n == int(sys.argv[2])
print(json.dumps({"call": call, "stream": stream}))
