"""Problems of reasoning-gym: its generators, and its own scores in guarded processes.

entries      one entry from one seed: what this process and a worker draw alike
generators   names and settings, checked against the library
judges       the library's scores, only in guarded workers
judging      asks the workers
draws        distinct problems, on their side of the split
problems     the task of kind `reasoning_gym`
"""
