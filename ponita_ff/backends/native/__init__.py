"""The network through the C++ kernels: predictions, and gradients with respect to weights for training.

``support.py`` lists what the kernels implement, ``comparison.py`` compares them with torch when they are set up,
``engine.py`` predicts, ``training.py`` trains.
"""
