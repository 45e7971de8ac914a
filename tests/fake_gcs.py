"""An object store in memory that speaks as much of Google Cloud Storage's JSON API as is used here.

The real clients talk to it over HTTP: gcsfs, tensorstore (checkpoints) and array_record by an
address in the environment, and TensorFlow, which has no such setting, through a proxy for HTTPS
with a certificate of our own.
"""

import base64
import contextlib
import datetime
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import ssl
import threading
import time
from urllib.parse import parse_qs, quote, unquote, urlsplit

HOSTS = ("www.googleapis.com", "storage.googleapis.com")
OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(OBJECT.pattern + r"/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
MOVE = re.compile(OBJECT.pattern + r"/moveTo/o/([^/]+)")


class Store(ThreadingHTTPServer):
    """Objects by (bucket, name), each its generation and contents; `requests` lists what came."""

    daemon_threads = True

    def __init__(self, certificate):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.uploads, self.requests = {}, {}, []
        self.lock = threading.Lock()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "https_proxy": self.url, "no_proxy": "", "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token", "NO_GCE_CHECK": "true"}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def put(self, key, contents):
        generation = time.time_ns()
        self.objects[key] = generation, contents
        return generation


def write_certificate(path):
    """Writes a certificate of HOSTS and its key to a file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now,
        now + datetime.timedelta(days=2)).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), False).sign(
                key, hashes.SHA256())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                          serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_):
        pass

    def do_CONNECT(self):  # pylint: disable=invalid-name
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.setup_streams()
        self.close_connection = False
        while not self.close_connection:
            self.handle_one_request()

    def setup_streams(self):
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)

    def answer(self, code, body=b"", **headers):
        if isinstance(body, dict):
            body, headers["Content_Type"] = json.dumps(body).encode(), "application/json"
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client may have read enough
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def serve(self):
        sent, url = self.body(), urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.server.requests.append((self.command, self.path))
        with self.server.lock:
            answer = self.dispatch(url.path, query, sent)
        code, body, headers = (*answer, {})[:3] if len(answer) > 1 else (answer[0], b"", {})
        self.answer(code, body, **headers)

    do_GET = do_POST = do_PUT = do_DELETE = serve

    def dispatch(self, path, query, sent):
        """Code, body and headers of the answer to one request."""
        if path.startswith("/batch/"):
            return self.batch(sent)
        if path.startswith(("/upload/", "/resumable/")):
            return self.upload(path, query, sent)
        if match := COPY.fullmatch(path):
            return self.copy(*map(unquote, match.groups()))
        if match := MOVE.fullmatch(path):
            bucket, name, to_name = map(unquote, match.groups())
            answer = self.copy(bucket, name, bucket, to_name)
            self.server.objects.pop((bucket, name), None)
            return answer[0], answer[1].get("resource", answer[1])
        if match := OBJECT.fullmatch(path):
            key = tuple(map(unquote, match.groups()))
            return self.delete(key) if self.command == "DELETE" else self.get(key, query)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return self.list(match[1], query)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)(?:/storageLayout)?", path):
            return 200, {"kind": "storage#bucket", "name": match[1], "location": "US"}
        bucket, _, name = path[1:].partition("/")  # as TensorFlow reads
        return self.get((bucket, unquote(name)), {"alt": "media"})

    def metadata(self, key):
        generation, contents = self.server.objects[key]
        stamp = datetime.datetime.fromtimestamp(generation / 1e9, datetime.UTC)
        stamp = stamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"kind": "storage#object", "bucket": key[0], "name": key[1],
                "size": str(len(contents)), "generation": str(generation), "metageneration": "1",
                "timeCreated": stamp, "updated": stamp, "storageClass": "STANDARD",
                "md5Hash": base64.b64encode(hashlib.md5(contents).digest()).decode()}

    def generation(self, key):
        return self.server.objects.get(key, (0, b""))[0]

    def get(self, key, query):
        if key not in self.server.objects:
            return 404, {"error": {"code": 404, "message": "no such object"}}
        generation, contents = self.server.objects[key]
        if query.get("ifGenerationNotMatch") == str(generation):
            return (304,)
        if query.get("alt") != "media":
            return 200, self.metadata(key)
        headers = {"X_Goog_Generation": str(generation), "ETag": str(generation),
                   "X_Goog_Stored_Content_Length": str(len(contents)),
                   "Content_Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return 200, contents, headers
        first = int(asked[1]) if asked[1] else max(len(contents) - int(asked[2]), 0)
        last = min(int(asked[2]) if asked[1] and asked[2] else len(contents), len(contents) - 1)
        if first >= len(contents):
            return (416,)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(contents)}"
        return 206, contents[first:last + 1], headers

    def list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names, folders = [], set()
        for key in sorted(self.server.objects):
            name = key[1]
            if key[0] != bucket or not name.startswith(prefix):
                continue
            if not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
                continue
            if delimiter and delimiter in name[len(prefix):]:
                end = name.index(delimiter, len(prefix)) + len(delimiter)
                folders.add(name[:end])
                if query.get("includeTrailingDelimiter") != "true" or end != len(name):
                    continue
            names.append(key)
        return 200, {"kind": "storage#objects", "prefixes": sorted(folders),
                     "items": [self.metadata(key) for key in names]}

    def delete(self, key):
        if self.server.objects.pop(key, None) is None:
            return 404, {"error": {"code": 404, "message": "no such object"}}
        return (204,)

    def copy(self, bucket, name, to_bucket, to_name):
        if (bucket, name) not in self.server.objects:
            return 404, {"error": {"code": 404, "message": "no such object"}}
        self.server.put((to_bucket, to_name), self.server.objects[bucket, name][1])
        return 200, {"done": True, "resource": self.metadata((to_bucket, to_name))}

    def upload(self, path, query, sent):
        if path.startswith("/resumable/"):
            key, parts = self.server.uploads[path]
            parts.append(sent)
            span = re.fullmatch(r"bytes .*/(\d+|\*)", self.headers.get("Content-Range", ""))
            size = sum(map(len, parts))
            if span and span[1] != str(size):
                return 308, b"", {"Range": f"bytes=0-{size - 1}"}
            self.server.put(key, b"".join(parts))
            return 200, self.metadata(key)
        bucket, name = unquote(path.split("/")[5]), query.get("name")
        if query["uploadType"] == "multipart":
            boundary = b"--" + re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[
                1].encode()
            parts = [part.partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")[2]
                     for part in sent.split(boundary)[1:3]]
            name = json.loads(parts[0])["name"]
            sent = re.sub(rb"\r?\n\Z", b"", parts[1])
        elif query["uploadType"] == "resumable":
            name = name or json.loads(sent)["name"]
            session = f"/resumable/{time.time_ns()}"
            self.server.uploads[session] = (bucket, name), []
            host = self.headers["Host"]
            scheme = "https" if host.split(":")[0] in HOSTS else "http"
            return 200, b"", {"Location": f"{scheme}://{host}{session}"}
        key = bucket, name
        if query.get("ifGenerationMatch", str(self.generation(key))) != str(self.generation(key)):
            return 412, {"error": {"code": 412, "message": "another generation"}}
        self.server.put(key, sent)
        return 200, self.metadata(key)

    def batch(self, sent):
        """Deletions, many in one request."""
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
        answers = []
        for number, path in enumerate(re.findall(rb"DELETE (\S+) HTTP", sent), 1):
            key = tuple(map(unquote, OBJECT.fullmatch(urlsplit(path.decode()).path).groups()))
            code = self.delete(key)[0]
            answers.append(f"--{boundary}\nContent-Type: application/http\n"
                           f"Content-ID: <response-{number}>\n\nHTTP/1.1 {code} {quote('x')}\n"
                           "Content-Length: 0\n\n\n")
        body = "".join(answers) + f"--{boundary}--"
        return 200, body.encode(), {"Content_Type": f"multipart/mixed; boundary={boundary}"}
