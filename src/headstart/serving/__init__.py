"""HTTP server for saved models.

Read requests.py (request bodies and limits), predictor.py (a model that is loaded once and called
often), batcher.py (bounded queue and dynamic batches), model_store.py (models by name, reloaded
when their files change), metrics.py (Prometheus), overlay.py (drawn predictions), page.py (HTML),
service.py (from a request to its response), app.py (the endpoints) and server.py (the process:
socket, signals, shutdown).
"""
