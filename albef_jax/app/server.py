"""Serves a page: who may ask, how much, and what a browser may load."""

import signal
import socket
import sys

import fastapi
import gradio
import uvicorn

from albef_jax.errors import UserError

UPLOAD = "20mb"  # of a file at most
WAITING = 32  # jobs in the queue at most
# A page of this server alone: no fonts, scripts or pictures of other hosts.
POLICY = ("default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
          "style-src 'self' 'unsafe-inline'")


def serve(page, host, port):
    """Answers until a signal stops it; UserError if the port is taken."""
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    listening = bound(host, port)
    shown = listening.getsockname()
    web = fastapi.FastAPI()

    @web.middleware("http")
    async def from_here_alone(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    gradio.mount_gradio_app(web, page, path="/", max_file_size=UPLOAD, show_error=True,
                            footer_links=[], theme=theme(), css=STYLE)
    print(f"http://{shown[0]}:{shown[1]} (stop it with Ctrl-C)", file=sys.stderr, flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has ended
        signal.signal(number, lambda *_: None)
    uvicorn.Server(uvicorn.Config(web, log_level="warning")).run(sockets=[listening])


def bound(host, port):
    """A socket that listens there, in any address family; UserError if it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        return listening
    except OSError as error:
        raise UserError(f"The app cannot listen on {host} port {port} "
                        f"({error.strerror or error}); give another --host or --port (0: any that "
                        "is free).") from None


def theme():
    """Gradio's plain theme with the fonts of the machine, which asks no other host for any."""
    fonts = ["system-ui", "sans-serif"]
    return gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])


STYLE = ".found img { object-fit: contain !important; }"
