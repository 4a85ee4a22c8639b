"""bench.py prints what a call costs that does little, {"call": [nanoseconds…]}; bench.py IMAGE BYTES how fast a program's output comes,
{"stream": [seconds…]}."""

import json
import sys
import time

import supermachine

if len(sys.argv) == 1:
    call = []
    for _ in range(10000):
        began = time.perf_counter_ns()
        supermachine.version()
        call.append(time.perf_counter_ns() - began)
    print(json.dumps({"call": call}))
    sys.exit()

stream = []
with supermachine.Image.from_oci(sys.argv[1], boot_only=True) as image, image.start() as vm:
    for _ in range(3):
        with vm.exec(["head", "-c", sys.argv[2], "/dev/zero"]) as p:
            assert p.stdout is not None
            began, n = time.perf_counter(), 0
            while data := p.stdout.read(1 << 20):
                n += len(data)
            stream.append(time.perf_counter() - began)
            assert n == int(sys.argv[2])
print(json.dumps({"stream": stream}))
