# frozen_string_literal: true

module Supermachine
  # What every function of this package raises when the library refuses or fails. There is a subclass for each code.
  class Error < StandardError
    # The number, the same in every language.
    attr_reader :code
    # The code's name, such as "image_not_found".
    attr_reader :name
    # What was attempted, and on what.
    attr_reader :op, :object
    # The last that a workload and its guest's console wrote, where a VM did not come up; else nil.
    attr_reader :output, :console

    def initialize(message = nil, code: 0, name: "", op: "", object: "", output: nil, console: nil)
      super(message)
      @code, @name, @op, @object, @output, @console = code, name, op, object, output, console
    end

    # Returns the error that the library describes.
    def self.of(code, value)
      known = value.slice(:name, :op, :object, :output, :console)
      ERRORS.fetch(code, Error).new(value.fetch(:message, "error #{code}"), code: code, **known)
    end
  end
end
