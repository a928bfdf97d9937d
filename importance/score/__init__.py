"""What a pass over text finds: how much each part of a model matters."""
