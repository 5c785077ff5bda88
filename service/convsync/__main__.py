"""`python -m convsync` is `convsync`."""

from convsync.cli import main

main(prog_name="convsync")
