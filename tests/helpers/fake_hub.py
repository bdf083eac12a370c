"""A server on this machine that answers huggingface_hub as the hub does: repositories, commits, files, LFS."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """``files``: repository → path → bytes; ``lfs``: what was uploaded by SHA-256; ``requests``: method and path."""

    def __init__(self, large=1000):
        self.files, self.lfs, self.private, self.requests = {}, {}, {}, []
        self.large = large  # bytes from which on a file is an LFS object
        self.url = ""

    def commit_of(self, repository):
        content = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in self.files[repository].items())
        return hashlib.sha1(content.encode()).hexdigest()

    def etag(self, data):
        if len(data) >= self.large:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def answer(self, status, data=b"", headers=()):
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.send_response(status)
            given = dict(headers)
            given.setdefault("Content-Length", str(len(data)))
            given.setdefault("Content-Type", "application/json")
            for name, value in given.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, code):
            self.answer(404, {"error": code}, {"X-Error-Code": code})

        def do_GET(self):
            hub.requests.append((self.command, self.path))
            found = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self.path)
            if not found:
                info = re.match(r"/api/models/([\w.-]+/[\w.-]+)(/revision/([^/]+))?", self.path)
                if info and info[1] in hub.files:
                    commit = hub.commit_of(info[1])
                    names = [{"rfilename": name} for name in hub.files[info[1]]]
                    return self.answer(200, {"id": info[1], "modelId": info[1], "sha": commit, "siblings": names})
                return self.missing("RepoNotFound")
            repository, revision, name = found.groups()
            if repository not in hub.files:
                return self.missing("RepoNotFound")
            commit = hub.commit_of(repository)
            if revision not in ("main", commit):
                return self.missing("RevisionNotFound")
            if name not in hub.files[repository]:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            data = hub.files[repository][name]
            headers = {
                "ETag": f'"{hub.etag(data)}"',
                "X-Repo-Commit": commit,
                "Content-Type": "application/octet-stream",
            }
            if len(data) >= hub.large:
                headers |= {"X-Linked-Etag": f'"{hub.etag(data)}"', "X-Linked-Size": str(len(data))}
            self.answer(200, data, headers)

        do_HEAD = do_GET  # noqa: N815

        def do_PUT(self):
            hub.requests.append((self.command, self.path))
            data = self.body()
            assert hashlib.sha256(data).hexdigest() == self.path.rsplit("/", 1)[1]
            hub.lfs[self.path.rsplit("/", 1)[1]] = data
            self.answer(200)

        def do_POST(self):
            hub.requests.append((self.command, self.path))
            body = self.body()
            if self.path == "/api/repos/create":
                given = json.loads(body)
                name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
                if name in hub.files:
                    return self.answer(409, {"url": f"{hub.url}/{name}", "error": "exists"})
                hub.files[name], hub.private[name] = (
                    {},
                    bool(given.get("private")) or given.get("visibility") == "private",
                )
                return self.answer(200, {"url": f"{hub.url}/{name}", "id": name})
            if found := re.fullmatch(r"/api/models/(.+)/preupload/main(\?.*)?", self.path):
                answers = [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["size"] >= hub.large else "regular",
                        "shouldIgnore": False,
                    }
                    for one in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": answers})
            if self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}", "header": {}}}}
                    for one in json.loads(body)["objects"]
                ]
                return self.answer(200, {"transfer": "basic", "objects": objects})
            if found := re.fullmatch(r"/api/models/(.+)/commit/main(\?.*)?", self.path):
                for line in filter(None, body.decode().split("\n")):
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        hub.files[found[1]][value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        hub.files[found[1]][value["path"]] = hub.lfs[value["oid"]]
                commit = hub.commit_of(found[1])
                return self.answer(200, {"commitUrl": f"{hub.url}/{found[1]}/commit/{commit}", "commitOid": commit})
            if self.path.startswith("/api/validate-yaml"):
                return self.answer(200, {"errors": [], "warnings": []})
            return self.answer(404, {"error": self.path})

    return Handler


@contextmanager
def fake_hub(**options):
    """Run the server in a thread. → its FakeHub, whose ``url`` is for ``HF_ENDPOINT``."""
    hub = FakeHub(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
