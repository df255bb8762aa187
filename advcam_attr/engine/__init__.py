"""What every long run needs: who does what, and files that are whole or not there."""
