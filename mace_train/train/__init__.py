"""Training: ``setup`` builds a ``run``, ``train`` loops over epochs, ``epoch`` over steps.

One ``step``: ``loss`` -> ``gradients`` over ranks -> optimizer (``optim``, ``ema``). ``state`` and
``checkpoint_manager`` save a run, ``log`` and ``metrics`` record it.
"""
