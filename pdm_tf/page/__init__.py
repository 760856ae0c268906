"""A page in the browser: what it does (`studio`, `inside`), and its looks (`layout`, which needs gradio)."""
