"""C++ kernels for the CPU: sources, compilation, loading, and the operators that torch calls.

Sources: ``simd.h`` (vectors), ``limits.h`` (limits, and what Python asks a library), ``activation.h`` (GELU),
``network.h`` (what inference and training share), ``harmonics.h`` (fibre convolution through harmonics), ``engine.h``
(inference), ``image.h`` (a potential in one piece of memory), ``radial.h`` (radial functions for training). One library
each is made of ``activation.cpp``, ``messages.cpp`` (operators of torch's graph), ``engine.cpp`` and ``training.cpp``.

Python: ``build.py`` compiles the libraries, ``loader.py`` finds and loads them, ``structs.py`` declares the structures
that are handed over, ``layout.py`` pads and packs weights, ``activation.py`` and ``messages.py`` are operators.
"""
