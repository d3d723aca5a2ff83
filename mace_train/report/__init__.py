"""One page about a training: learning, errors, balance, and settings, as HTML."""
