"""Published methods that train masks, one per file: Lightning callbacks with one base class."""
