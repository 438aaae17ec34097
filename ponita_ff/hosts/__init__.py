"""Other simulation engines, each in a module of its own that is imported only where the engine is used."""
