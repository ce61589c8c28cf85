"""A stand-in for the model hub: a local server with the requests that huggingface_hub sends for uploads and downloads.

Files are kept in memory. Checkpoints take the way of large files: their hash is announced, then their content is uploaded
to another address, and a commit refers to the hash.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


class Hub:
    """Published files and the requests that the server got."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.files: dict[str, dict[str, bytes]] = {}  # OWNER/NAME -> file name -> content
        self.earlier: dict[str, dict[str, bytes]] = {}  # commit -> files
        self.private: dict[str, bool] = {}
        self.commits: dict[str, int] = {}
        self.large: dict[str, bytes] = {}  # SHA-256 -> uploaded content
        self.requests: list[str] = []

    def commit_id(self, name: str) -> str:
        return hashlib.sha1(f"{name} {self.commits.get(name, 0)}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        """Stay silent."""

    def reply(self, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.reply({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self.path.partition("?")[0])
        if not found:
            return self.refuse(404, "EntryNotFound")
        name, revision, file = found.groups()
        if name not in self.hub.files:
            return self.refuse(401, "RepoNotFound")
        commit = self.hub.commit_id(name) if revision == "main" else revision
        files = self.hub.files[name] if commit == self.hub.commit_id(name) else self.hub.earlier.get(commit)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        content = files[file]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.reply(content, ETag=etag, X_Repo_Commit=commit, Accept_Ranges="none")

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        content = self.body()
        self.hub.large[self.path.rpartition("/")[2]] = content
        self.reply(b"", ETag=f'"{hashlib.md5(content).hexdigest()}"')

    def do_POST(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.body()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.files:
                return self.reply({"error": "exists", "url": f"{self.hub.endpoint}/{name}"}, 409)
            self.hub.files[name], self.hub.private[name] = {}, asked.get("visibility") == "private"
            return self.reply({"url": f"{self.hub.endpoint}/{name}", "id": name, "name": name})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".pth") else "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self.reply({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.reply({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self.refuse(404, "NotFound")

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.files[name])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        self.hub.earlier[self.hub.commit_id(name)] = self.hub.files[name]
        self.hub.files[name] = files
        self.hub.commits[name] = self.hub.commits.get(name, 0) + 1
        address = f"{self.hub.endpoint}/{name}/commit/{self.hub.commit_id(name)}"
        self.reply({"commitUrl": address, "commitOid": self.hub.commit_id(name), "hookOutput": "", "success": True})


@contextmanager
def served_hub() -> Iterator[Hub]:
    """Serve an empty hub on this machine within a block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
