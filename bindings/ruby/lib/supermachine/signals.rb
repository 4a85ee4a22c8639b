# frozen_string_literal: true

module Supermachine
  # Go's runtime cannot block SIGCHLD on its threads, which may run on stacks of a few KiB: a handler of that signal must use a stack of its own
  # (SA_ONSTACK). Ruby installs its handlers without that, so it is added after every trap.
  module Signals
    def trap(...)
      super
    ensure
      Native::SIGNALS_CHECK.call
    end
  end
  private_constant :Signals

  [Kernel, Signal].each { |m| m.singleton_class.prepend(Signals) }
  Kernel.prepend(Signals.dup.tap { |m| m.send(:private, :trap) })
  Native::SIGNALS_CHECK.call
end
