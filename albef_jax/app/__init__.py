"""`albef app`: a trained model in the browser, on this machine unless told otherwise."""

import os
import tempfile

from albef_jax.errors import MISSING, UserError


def app(workdir, data=None, image_root=None, host="127.0.0.1", port=7860, **options):
    """Serves the page until it is stopped.

    Nothing is written but into a temporary folder, no other host is asked for anything, and uploads
    are read as any image of a data set is.

    Args:
      workdir, options: see `albef_jax.load`.
      data: what is searched: a folder of images, a manifest, or an .npz file of `albef embed`; of a
        model of products or regions a source in short form; None: nothing.
      image_root: of a manifest.
      host: whom it answers; '0.0.0.0': everybody. port: 0 for a free one.

    Raises:
      UserError: gradio is missing, the model or the data cannot be read, or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="albef_app_", ignore_cleanup_errors=True) as folder:
        # Before gradio is imported, which reads them then.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False",
                       "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            from albef_jax.app.pages import page_of
            from albef_jax.app.server import serve
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise UserError(MISSING.format("The app", "gradio", "app")) from None
        serve(page_of(workdir, data, image_root, options), host, port)
