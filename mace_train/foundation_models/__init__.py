"""Foundation models by name: a table, their licences, caches, and downloads.

``named`` says which model a value of a setting means, ``model_file`` gives its file and
``imported_checkpoint`` a checkpoint, from a cache or downloaded.
"""
