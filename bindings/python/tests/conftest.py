import os
import signal
from typing import Iterator

import pytest
import supermachine


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal: where the tests run in the background it is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def image() -> Iterator[supermachine.Image]:
    """A busybox that runs nothing; guests need KVM, or the testbed."""
    events = []
    ref = f"oci:{os.environ['SUPERMACHINE_TEST_IMAGES']}/busybox:latest"
    with supermachine.Image.from_oci(ref, boot_only=True, memory_mib=96, progress=events.append) as image:
        assert {"resolved", "done", "step"} <= {e["event"] for e in events}
        yield image


@pytest.fixture
def vm(image: supermachine.Image) -> Iterator[supermachine.VM]:
    with image.start() as vm:
        yield vm
