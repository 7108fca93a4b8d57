"""An artifact's chosen export as one file that runs, explains itself and can be checked without rankfold or torch."""
