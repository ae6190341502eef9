"""Design space exploration with Optuna: which network, and which way to train it, suits the board.

``config`` reads what is explored, ``space`` lists what can be drawn and ``samplers`` draw, by the ``quantities`` that
are to be small. ``storage`` and ``study`` keep what was found, ``worker`` goes from trial to trial. A trial is a run of
`hps fit` in a process of its own: ``trial`` is the worker's side of it, ``training`` the other. ``measure`` tells what
a network costs before it is trained, ``pruning`` which trial is not worth its end. ``front`` and ``plot`` show what
came out, ``best`` makes a config of it.
"""
