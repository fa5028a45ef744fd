"""What `one_graph.py` measures: graphs and operators, training steps, evaluation and sampling."""
