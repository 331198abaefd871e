"""The one file of ``--format gguf``: its key-values, its tokens, its assembly, its Modelfile."""
