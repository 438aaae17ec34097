"""The look of HTML pages that commands write: one style, one script, one frame, without requests to other hosts."""
