"""Serve the API: ``python -m api``."""

from api.main import serve

serve()
