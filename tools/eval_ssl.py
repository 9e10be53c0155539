"""Frozen evaluation of a backbone: knn, linear, logreg, few-shot, features. The same as `stillroom-eval-ssl`."""

from stillroom.eval_ssl.cli import main

if __name__ == "__main__":
    main()
