"""A Hugging Face hub in memory: as much of its HTTP interface as its own client uses here.

Commits of regular files and of large ones (Git LFS), the tree of a revision, and downloads; who has
no right token is refused as there.
"""

import base64
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import threading
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
LARGE = (".safetensors", ".png")  # what the real one wants as LFS
MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|revision|tree|refs)(?:/([^/]+))?)?/?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class Hub(ThreadingHTTPServer):
    """Repositories by name: a list of commits, each `(oid, {path: contents})`, oldest first."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.large, self.requests = {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def environment(self, home, token=TOKEN):
        """Of a process that is to know no other hub."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": token,
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}

    def commit_of(self, repo, revision):
        """`(oid, files)` of a commit or of the branch main; None if there is none."""
        commits = self.repos[repo]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((one for one in commits if one[0] == revision), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing: the tests' output is theirs."""

    def do_GET(self):
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append((self.command, path))
        if self.command in ("POST", "PUT") and not path.startswith("/lfs/") and (
                self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            hub.large[path.rpartition("/")[2]] = body
            return self.answer(200, {})
        if found := BATCH.fullmatch(path):
            return self.batch(json.loads(body))
        if found := RESOLVE.fullmatch(path):
            return self.resolve(*found.groups())
        if found := MODEL.fullmatch(path):
            return self.model(*found.groups(), body)
        return self.answer(404, {"error": f"no route {path}"})

    def create(self, wanted):
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        there = name in self.server.repos
        self.server.repos.setdefault(name, [])
        return self.answer(409 if there else 200, {
            "url": f"{self.server.url}/{name}", "id": name, "name": name,
            **({"error": "You already created this model repo"} if there else {})})

    def model(self, repo, what, revision, body):
        hub = self.server
        if repo not in hub.repos:
            return self.answer(404, {"error": "Repository not found"}, "RepoNotFound")
        commit = hub.commit_of(repo, revision or "main")
        if commit is None:
            return self.answer(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        oid, files = commit
        if what == "preupload":
            return self.answer(200, {"files": [
                {"path": file["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                for file in json.loads(body)["files"]]})
        if what == "commit":
            return self.commit(repo, files, [json.loads(line) for line in body.splitlines()])
        if what == "tree":
            return self.answer(200, [
                {"type": "file", "path": name, "size": len(data),
                 "oid": hashlib.sha1(data).hexdigest(), **self.lfs(name, data)}
                for name, data in files.items()])
        return self.answer(200, {
            "_id": "1", "id": repo, "modelId": repo, "sha": oid, "private": False, "tags": [],
            "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in files]})

    def lfs(self, name, data):
        oid = hashlib.sha256(data).hexdigest()
        return {"lfs": {"oid": oid, "size": len(data), "pointerSize": 130}} if (
            name.endswith(LARGE)) else {}

    def commit(self, repo, files, lines):
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.server.repos[repo].append((oid, files))
        return self.answer(200, {"success": True, "commitOid": oid, "hookOutput": "",
                                 "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def batch(self, wanted):
        return self.answer(200, {"transfer": "basic", "objects": [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
            for one in wanted["objects"]]})

    def resolve(self, repo, revision, name):
        commit = self.server.commit_of(repo, revision) if repo in self.server.repos else None
        if commit is None or name not in commit[1]:
            return self.answer(404, {"error": "Entry not found"}, "EntryNotFound")
        data = commit[1][name]
        etag = self.lfs(name, data).get("lfs", {}).get("oid") or hashlib.sha1(data).hexdigest()
        return self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit[0]})

    def answer(self, code, value, error=""):
        headers = {"Content-Type": "application/json"} | (
            {"X-Error-Code": error, "X-Error-Message": value.get("error", "")} if error else {})
        return self.send(code, json.dumps(value).encode(), headers)

    def send(self, code, data, headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
