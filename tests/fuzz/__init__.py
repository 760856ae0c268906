"""Each door of the program, tried with damaged files and odd words."""
