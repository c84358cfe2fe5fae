"""Serving: one base model and many adapters of it over HTTP, in OpenAI's protocol.

In: a base model or a run, folders of adapters, keys. Out: answers, labels and embeddings to whoever may ask for them.
The engine (`luthier/engine/serving`) does the work on a thread of its own; here is who may ask what, in which words.
"""
