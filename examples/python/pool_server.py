"""A web server that runs the Python code it is sent, each request in a clean VM of a pool: pool_server.py [IMAGE [PORT]]

    curl --data 'print(6 * 7)' http://127.0.0.1:8000/
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import supermachine

ref = sys.argv[1] if len(sys.argv) > 1 else "python:3.12-slim"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        code = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            with pool.acquire() as vm:  # microseconds, while one is ready
                result = vm.run(["python3", "-"], input=code, timeout=10)
            status, body = (200 if result.code == 0 else 422), result.stdout + result.stderr
        except supermachine.errors.ExhaustedError:
            status, body = 503, b"all VMs are busy\n"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


with supermachine.Image.from_oci(ref, boot_only=True, warmup=[["python3", "-c", "pass"]]) as image, image.pool(min=2, max=16, acquire_timeout=5) as pool:
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
