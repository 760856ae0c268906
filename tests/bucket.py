"""A stand-in for Google Cloud Storage, to which TensorFlow's own gs:// client is led; objects are files.

TensorFlow has no setting for another address, but its client heeds `https_proxy` and `CURL_CA_BUNDLE`: the
stand-in is that proxy, and says with a certificate of its own that it is Google. It knows the calls that
TensorFlow makes (docs of the JSON API: objects get, list, delete, rewrite, resumable upload) and no others.

    python tests/bucket.py FOLDER     prints the port; ends when its standard input does
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

BUCKET = "test-bucket"
HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class Server(http.server.BaseHTTPRequestHandler):
    """One connection: CONNECT first, then the calls over TLS; objects lie in `folder`, by quoted names."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    folder: Path
    context: ssl.SSLContext
    uploads: ClassVar[dict] = {}
    lock = threading.Lock()

    def do_CONNECT(self):
        if self.path.partition(":")[0] not in HOSTS:
            self.send_error(502)
            self.close_connection = True
            return
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def _call(self):
        body = self._body()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        parts = url.path.strip("/").split("/")
        with self.lock:
            if parts[0] == "upload":
                self._upload(query, body)
            elif parts[0] == "storage":
                self._objects([urllib.parse.unquote(part) for part in parts[2:]], query)
            else:  # storage.googleapis.com/BUCKET/OBJECT
                self._read(urllib.parse.unquote(url.path.lstrip("/")).partition("/")[2])

    do_GET = do_POST = do_PUT = do_DELETE = _call  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _file(self, name: str) -> Path:
        return self.folder / urllib.parse.quote(name, safe="")

    def _objects(self, parts, query):
        """b/BUCKET, b/BUCKET/o, b/BUCKET/o/NAME, .../rewriteTo/b/BUCKET/o/NAME"""
        if parts[1] != BUCKET:
            return self._answer(404)
        if len(parts) == 2:
            return self._json({"location": "US"})
        if len(parts) == 3:
            return self._json(self._listed(query))
        file = self._file(parts[3])
        if not file.exists():
            return self._answer(404)
        if len(parts) > 4:
            self._file(parts[-1]).write_bytes(file.read_bytes())
            return self._json({"done": True})
        if self.command == "DELETE":
            file.unlink()
            return self._answer(204)
        found = file.stat()
        return self._json(
            {"size": str(found.st_size), "generation": str(found.st_mtime_ns),
             "updated": "2026-01-01T00:00:00.000Z"}
        )  # fmt: skip

    def _listed(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(urllib.parse.unquote(entry) for entry in os.listdir(self.folder)):
            rest = name[len(prefix) :]
            if not name.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append({"name": name})
        items = items[: int(query.get("maxResults", 10**6))]
        return {"items": items, "prefixes": sorted(prefixes)}

    def _read(self, name):
        file = self._file(name)
        if not file.exists():
            return self._answer(404)
        data, begin, end = file.read_bytes(), 0, None
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].partition("=")[2].partition("-")
            begin, end = int(first), int(last) + 1
            if begin >= len(data):
                return self._answer(416)
        return self._answer(206 if end else 200, data[begin:end])

    def _upload(self, query, body):
        """A session is opened by POST, and each PUT adds to it; with the last byte the object is there."""
        if query.get("uploadType") == "media":
            self._put(query["name"], body)
            return self._json({})
        if self.command == "POST":
            session = str(len(self.uploads))
            self.uploads[session] = (query["name"], b"")
            where = f"https://{HOSTS[0]}/upload/session?upload_id={session}"
            return self._answer(200, headers={"Location": where})
        name, before = self.uploads[query["upload_id"]]
        data = before + body
        self.uploads[query["upload_id"]] = (name, data)
        total = self.headers.get("Content-Range", "*/0").rpartition("/")[2]  # none: the object is empty
        if int(total) > len(data):
            return self._answer(308, headers={"Range": f"bytes=0-{len(data) - 1}"} if data else {})
        self._put(name, data)
        return self._json({})

    def _put(self, name, data):
        made = self.folder.parent / f"{threading.get_ident()}.made"
        made.write_bytes(data)
        made.rename(self._file(name))

    def _json(self, values):
        self._answer(200, json.dumps(values).encode())

    def _answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def certificate(folder: Path) -> Path:
    """A key and a certificate of both hosts, in one file; made by openssl."""
    pem, names = folder / "both.pem", ",".join(f"DNS:{host}" for host in HOSTS)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=stand-in", "-addext", f"subjectAltName={names}",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    pem.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return pem


@contextlib.contextmanager
def stand_in(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the stand-in; yields the environment of programs that are to meet it at gs://test-bucket.

    Args:
      folder: gets a folder `objects`, which holds each object as a file of its quoted name.
    """
    (folder / "objects").mkdir(parents=True)
    certificate(folder)
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        port = int(server.stdout.readline())
        yield {
            "https_proxy": f"http://127.0.0.1:{port}",
            "HTTPS_PROXY": f"http://127.0.0.1:{port}",
            "CURL_CA_BUNDLE": str(folder / "cert.pem"),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",
            "GCS_RETRY_CONFIG_MAX_RETRIES": "2",
            "no_proxy": "",
        }
        server.stdin.close()


def main(folder: str) -> None:
    Server.folder = Path(folder) / "objects"
    Server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Server.context.load_cert_chain(Path(folder) / "both.pem")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
