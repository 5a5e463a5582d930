"""What `python eval.py run=... protocol=<name>` can do with a trained run beyond the test loop."""
