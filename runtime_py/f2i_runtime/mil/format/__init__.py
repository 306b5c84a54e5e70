"""Reading an ``.mlpackage``: folder, protobuf program, weight file, types, compressed constants."""
